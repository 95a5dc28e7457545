"""Steps downhill: the optimisers, how the learning rate falls, and one step."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fxfuse.errors import MethodError, nearest

Schedule = Literal["constant", "linear", "cosine"]
UNUSABLE = ("Optimizer", "LBFGS", "SparseAdam", "Muon")
"""Not to be had by name: the base class, one that wants the loss as a function, one for sparse gradients, and one for
matrices alone."""


def adam(parameters: Sequence[Tensor], lr: float) -> torch.optim.Adam:
    """The optimiser of all gradient fits; one kernel per step where the parameters allow it."""
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.Adam(list(parameters), lr=lr, betas=(0.9, 0.99), fused=fused)


def make_optimizer(
    name: str, parameters: Sequence[Tensor], lr: float, options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """An optimiser of ``torch.optim``. Raises ``MethodError`` for an unknown one, or options that it does not take."""
    known = {n: c for n, c in vars(torch.optim).items() if isinstance(c, type) and issubclass(c, torch.optim.Optimizer)}
    usable = [n for n in known if n not in UNUSABLE]
    if name not in usable:
        raise MethodError(f"unknown optimizer {name!r} of torch.optim: {nearest(name, usable)}")
    make: Any = known[name]
    try:
        made: torch.optim.Optimizer = make(list(parameters), lr=lr, **options)
    except (TypeError, ValueError) as error:
        raise MethodError(f"torch.optim.{name} does not take lr={lr}, {dict(options)}: {error}") from None
    return made


def falling(schedule: Schedule, part: float) -> float:
    """The factor of the learning rate after a part of all steps: 1 at first, 0 after the last unless it is constant."""
    if schedule == "constant":
        return 1.0
    return 1 - part if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * part))


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, lr: float) -> None:
    """One step down ``loss`` at a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch's
    optimizer.step()
