"""The middle of a training: the best state so far, and all that it takes to go on bit for bit after an interruption."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxfuse.passes.fitting import Store

SAVE_SECONDS = 20.0
"""So long a training goes on before it is saved again."""

Tensors = dict[str, Tensor]


def copied(tensors: Mapping[str, Tensor]) -> Tensors:
    """Copies that training does not change."""
    return {name: value.detach().clone() for name, value in tensors.items()}


@dataclass(slots=True)
class Best:
    """The state with the lowest score so far, and when (``at``, in steps or epochs) it was found. Of several
    ``figures`` the last is the score."""

    figures: tuple[float, ...]
    state: Tensors
    at: int = 0

    def offer(self, figures: tuple[float, ...], state: Mapping[str, Tensor], at: int) -> None:
        """Copy a state of the same names if it is better; one whose score is no number never is."""
        if figures[-1] < self.figures[-1]:
            put(self.state, state)
            self.figures, self.at = figures, at


class Keeper:
    """Saves the middle of a training under a key, not too often, and finds it again; does nothing without a store."""

    def __init__(self, store: Store | None, key: str) -> None:
        self.store, self.key = store, key
        self.saved = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to save."""
        return self.store is not None and time.monotonic() - self.saved > SAVE_SECONDS

    def save(self, meta: Mapping[str, object], **parts: Mapping[str, Tensor]) -> None:
        """Keep named sets of tensors, and JSON values."""
        if self.store is not None:
            tensors = {f"{part}.{name}": value for part, own in parts.items() for name, value in own.items()}
            self.store.save(self.key, tensors, meta)
            self.saved = time.monotonic()

    def load(self) -> tuple[dict[str, Any], "Callable[[str], Tensors]"] | None:
        """What was saved, if anything: the JSON values, and the sets of tensors by name."""
        saved = None if self.store is None else self.store.load(self.key)
        if saved is None:
            return None
        tensors, meta = saved

        def part(name: str) -> Tensors:
            return {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}

        return meta, part


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Tensors:
    """An optimiser's state by the parameter's number and the entry's name; settings are not in it."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{number}.{key}": torch.as_tensor(value)
        for number, entries in state.items()
        for key, value in entries.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`optimizer_tensors` gave, on the parameters' devices."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, _, key = name.partition(".")
        state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def put(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values into the tensors of the same names."""
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(values[name])


def exchange(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> None:
    """Swap the values of the tensors of the same names, with room for one of them at a time."""
    with torch.no_grad():
        for name, tensor in tensors.items():
            kept = tensor.clone()
            tensor.copy_(others[name])
            others[name].copy_(kept)
