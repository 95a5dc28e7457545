"""Analysed zoo models for the tests of the passes that come after the analysis."""

import torch
from torch import nn

from fxfuse.models_zoo.randomise import randomise
from fxfuse.models_zoo.zoo import ZOO
from fxfuse.passes.axes import axes
from fxfuse.passes.trace import trace
from fxfuse.types import Analysis, Partition

CPU = torch.device("cpu")


def analysed(module: nn.Module, example: tuple[torch.Tensor, ...], name: str = "parent") -> Analysis:
    program = trace(module.eval(), example, name=name)
    return Analysis(program, axes(program), Partition((), "layer"))


def zoo_parents(name: str, widths: tuple[int | None, ...] = (None, None)) -> list[Analysis]:
    entry = ZOO[name]
    parents = []
    for seed, width in enumerate(widths):
        module = entry.factory() if width is None else entry.factory(width=width)
        parents.append(analysed(randomise(module, seed), entry.example(2), f"parent {seed}"))
    return parents
