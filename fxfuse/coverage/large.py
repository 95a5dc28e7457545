"""Room for the largest networks: their weights lie in a file, whose pages the system drops when memory is short, and
graphs that are not used any more go at once."""

import gc
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from fxfuse.memory import give_back

MEDIUM, LARGE = 10_000_000, 100_000_000
"""Parameters of networks of which a few, or one, are a matter of memory."""

M = TypeVar("M", bound=nn.Module)


def left_in_file(module: M, folder: Path) -> M:
    """The module, its parameters in a file if it is large. The file has no name any more and goes with the last of
    them; what is written to a parameter stays in memory."""
    own = dict(module.named_parameters())
    if sum(p.numel() for p in own.values()) < LARGE:
        return module
    path = folder / "weights.pt"
    torch.save({name: p.detach() for name, p in own.items()}, path)
    for name, value in torch.load(path, mmap=True, weights_only=True).items():
        own[name].data = value
    path.unlink()
    return module


def collect(parameters: int) -> None:
    """Free what nothing uses, if graphs of a network with so many parameters may be among it: they and their modules
    point at one another. To look for that takes a second where many libraries are loaded."""
    if parameters >= MEDIUM:
        gc.collect()
        give_back()
