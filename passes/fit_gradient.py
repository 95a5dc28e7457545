"""Fit one level by mini-batch gradient descent on its error, whatever operators it contains.

Adam from the rewritten weights, cosine schedule, best state by held-out error. The learning rate needs no tuning per
architecture because the error is relative to the target's own variation and Adam's steps do not depend on its scale.
"""

import math
import time

import torch
from torch import Tensor

from fxfuse.passes.fitting import LevelTask

CHECKS = 5
"""How often the held-out error is looked at; without progress at ``PATIENCE`` looks the fit stops."""
PATIENCE = 2


def fit_gradient(task: LevelTask, steps: int, lr: float, max_seconds: float | None, seed: int) -> bool:
    """Train the level's parameters in place; returns whether there were any to train."""
    own = set(task.level.parameters)
    parameters = [p for name, p in task.piece.named_parameters() if name in own and p.requires_grad]
    if not parameters or steps == 0:
        return False
    optimizer = adam(parameters, lr)
    generator = torch.Generator().manual_seed(seed * 1009 + task.level.index)
    chunks = [chunk for chunk in task.chunks if not chunk.held] or task.chunks
    best, best_error, waiting = _copy(parameters), task.error(), 0
    deadline = None if max_seconds is None else time.monotonic() + max_seconds
    order: list[int] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        order = order or torch.randperm(len(chunks), generator=generator).tolist()
        chunk = chunks[order.pop()]
        loss = task.loss(task.piece(*task.inputs(chunk))[0], chunk)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        optimizer.step()
        if (step + 1) % max(1, steps // CHECKS) == 0 or step + 1 == steps:
            error = task.error()
            waiting = 0 if error < best_error else waiting + 1
            if error < best_error:
                best, best_error = _copy(parameters), error
            if waiting == PATIENCE or (deadline is not None and time.monotonic() > deadline):
                break
    with torch.no_grad():
        for parameter, value in zip(parameters, best, strict=True):
            parameter.copy_(value)
    return True


def adam(parameters: list[torch.nn.Parameter], lr: float) -> torch.optim.Adam:
    """The optimiser of all gradient fits; one kernel per step where the parameters allow it."""
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.99), fused=fused)


def _copy(parameters: list[torch.nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]
