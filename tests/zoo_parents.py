"""Analysed zoo models for the tests of the passes that come after the analysis."""

import copy
import functools
from dataclasses import replace

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


@functools.cache
def _zoo_parent(name: str, width: int | None, seed: int) -> Analysis:
    entry = ZOO[name]
    module = entry.factory() if width is None else entry.factory(width=width)
    return analysed(randomise(module, seed), entry.example(2), f"parent {seed}")


def zoo_parents(name: str, widths: tuple[int | None, ...] = (None, None)) -> list[Analysis]:
    """Fresh copies: what a test does to them stays in the test."""
    found = [_zoo_parent(name, width, seed) for seed, width in enumerate(widths)]
    return [replace(a, program=replace(a.program, module=copy.deepcopy(a.program.module))) for a in found]
