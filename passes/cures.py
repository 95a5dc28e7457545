"""What would make a network take inputs that it rejects, found by trying and not by reading what torch says.

Each cure is a change of one input and the words that ask for it. A network ``f`` that rejects ``x`` is asked for
``f(change(x))``; the first change that it takes is told. The values do not matter, only types and shapes: whole numbers
are tried as zeros, which any vocabulary has.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxfuse.passes.binding import Bound

MANY = 6
"""Inputs that are changed one by one where changing all of them does not help."""

Change = Callable[[Tensor], Tensor | None]
"""An input as the network might rather have it, or ``None`` where the change does not apply."""


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Without the fast path of ``nn.MultiheadAttention``, which zeroes padded positions in evaluation mode only."""
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was)


@torch.no_grad()
def ask(module: nn.Module, bound: Bound, tensors: Sequence[Tensor]) -> Any:
    """What a network returns for its inputs, which it cannot change; raises whatever it raises."""
    args, kwargs = bound.call(tuple(x.clone() for x in tensors))
    with plain_attention():
        return module(*args, **kwargs)


def accepts(module: nn.Module, bound: Bound, tensors: Sequence[Tensor]) -> bool:
    """Whether a network takes inputs."""
    try:
        ask(module, bound, tensors)
    except Exception:  # the user's code may raise anything
        return False
    return True


def cure(module: nn.Module, bound: Bound, tensors: tuple[Tensor, ...]) -> str:
    """The words that ask for what the network takes in place of ``tensors``; general ones where nothing helps."""
    for change, words in _CURES:
        for changed, places in _changed(tensors, change):
            if accepts(module, bound, changed):
                names = [bound.names[place] for place in places]
                return f"{_subject(names, len(tensors))} {words}"
    return "give inputs of the shape and type that it was trained with"


def _changed(tensors: tuple[Tensor, ...], change: Change) -> Iterator[tuple[tuple[Tensor, ...], list[int]]]:
    """The inputs with the change made wherever it applies, then in one place at a time, and where it was made."""
    new = {place: y for place, x in enumerate(tensors) if (y := change(x)) is not None}
    if new:
        yield tuple(new.get(place, x) for place, x in enumerate(tensors)), list(new)
    for chosen in list(new)[:MANY] if len(new) > 1 else []:
        yield tuple(new[chosen] if place == chosen else x for place, x in enumerate(tensors)), [chosen]


def _subject(names: list[str], count: int) -> str:
    """Which inputs are meant: all of one need no name."""
    return "it takes" if count == 1 else f"as {' and '.join(map(repr, names))} it takes"


def _whole(x: Tensor) -> Tensor | None:
    return None if x.dtype == torch.int64 else torch.zeros_like(x, dtype=torch.int64)


def _small(x: Tensor) -> Tensor | None:
    return torch.zeros_like(x) if x.dtype in (torch.int64, torch.int32) and bool((x != 0).any()) else None


def _floating(x: Tensor) -> Tensor | None:
    return None if x.is_floating_point() or x.is_complex() else x.float()


def _channels_first(x: Tensor) -> Tensor | None:
    return x.permute(0, 3, 1, 2).contiguous() if x.ndim == 4 and x.shape[3] in (1, 3, 4) else None


def _grey(x: Tensor) -> Tensor | None:
    if x.ndim == 3:
        return x[:, None]
    return x[:, :1].contiguous() if x.ndim == 4 and x.shape[1] == 3 else None


def _colour(x: Tensor) -> Tensor | None:
    x = x[:, None] if x.ndim == 3 else x
    return x.repeat(1, 3, 1, 1) if x.ndim == 4 and x.shape[1] == 1 else None


def _flat(x: Tensor) -> Tensor | None:
    return x.flatten(1) if x.ndim > 2 else None


_CURES: tuple[tuple[Change, str], ...] = (
    (_whole, "whole numbers, such as tokens: give them as int64"),
    (_small, "numbers from 0 to below the size of the table that they index, such as the vocabulary"),
    (_floating, "floating-point numbers: give them as such, or say `to_float: true` in `preprocessing`"),
    (_channels_first, "images whose channels go first: say `permute: [2, 0, 1]` in `preprocessing`"),
    (_grey, "images of one channel: say `channels: grayscale` in `preprocessing`"),
    (_colour, "images of three channels: say `channels: rgb` in `preprocessing`"),
    (_flat, "one dimension per sample: say `flatten: true` in `preprocessing`"),
)
