"""Zoo models analysed once, and the comparisons that the laws are made of."""

import copy
import functools
from dataclasses import replace

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from fxfuse.data import samples_from
from fxfuse.models_zoo.randomise import randomise
from fxfuse.models_zoo.zoo import ZOO
from fxfuse.passes.axis_law import permuted
from fxfuse.passes.calibrate import calibrate
from fxfuse.passes.checking import difference, plain
from fxfuse.passes.correspond import Correspondence, correspond
from fxfuse.passes.group import group
from fxfuse.passes.rewrite import rewrite
from fxfuse.pipeline import analyse
from fxfuse.presets import METHODS
from fxfuse.samples import Samples
from fxfuse.types import Analysis, Axes, SpaceStatistics

CPU = torch.device("cpu")
NO_AXES = Axes((), {}, {}, {})
"""For partitions, which need no axes but for the names of spaces."""


def model(name: str, width: int | None = None, seed: int = 0) -> nn.Module:
    """A zoo model with random weights, in evaluation mode."""
    factory = ZOO[name].factory
    return randomise(factory() if width is None else factory(width=width), seed).eval()


@functools.cache
def _analysed(name: str, width: int | None, seed: int) -> Analysis:
    return analyse(model(name, width, seed), ZOO[name].example(3), name=f"{name} {width or ''}".strip())


def analysed(name: str, width: int | None = None, seed: int = 0) -> Analysis:
    """An analysis of a zoo model; a copy, so that what a test does to it stays in the test."""
    found = _analysed(name, width, seed)
    return replace(found, program=replace(found.program, module=copy.deepcopy(found.program.module)))


def data(name: str, count: int = 48) -> Samples:
    """Random inputs for a zoo model."""
    return samples_from(ZOO[name].example(count, seed=5))


def outputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """All tensors that a module returns."""
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(module(*inputs)) if isinstance(leaf, Tensor)]


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference relative to the largest value, over all outputs."""
    assert [x.shape for x in found] == [x.shape for x in expected]
    pairs = zip(found, expected, strict=True)
    return max(((x - y).abs().max() / y.abs().max().clamp(min=1e-9)).item() for x, y in pairs)


def with_permuted_copy(name: str, seed: int = 1) -> Correspondence:
    """A model and a copy of it whose every neuron space has been permuted at random, as parents."""
    first = analysed(name)
    twin = permuted(first.program, first.axes, seed).float()
    return correspond(first, [first, replace(first, program=replace(first.program, module=twin, name="copy"))])


def statistics(pairs: Correspondence, samples: Samples, importance: str = "uniform") -> dict[int, SpaceStatistics]:
    """Calibration statistics of parents of equal weight."""
    shares = (1 / len(pairs.parents),) * len(pairs.parents)
    return calibrate(pairs.parents, samples, weights=shares, device=CPU, importance=importance)


def grouped(
    pairs: Correspondence,
    found: dict[int, SpaceStatistics],
    method: str,
    shares: tuple[float, ...] | None = None,
) -> fx.GraphModule:
    """The parents fused by a method's grouping alone."""
    shares = shares or (1 / len(pairs.parents),) * len(pairs.parents)
    spaces = pairs.reference.axes.spaces
    widths = {s.id: pairs.widths(s.id) for s in spaces}
    targets = {s.id: s.size for s in spaces}
    preset = METHODS[method]
    groupings = group(spaces, found, widths, targets, preset.solver, preset.options, shares, 0)
    return rewrite(pairs, groupings, shares)


SOLVERS = tuple({preset.solver: name for name, preset in reversed(METHODS.items())}.values())
"""One method per solver, those that fit nothing before those that do."""


def assert_faithful(model: nn.Module, module: fx.GraphModule, inputs: tuple[Tensor, ...], tolerance=1e-5) -> None:
    """The laws of a program: same function, same state dict, differentiable, copies like any module."""
    with torch.no_grad():
        worst, where = difference(plain(model(*inputs)), plain(module(*inputs)))
    assert worst <= tolerance, where
    state = model.state_dict()
    assert list(module.state_dict()) == list(state)
    module.load_state_dict(state, strict=True)
    model.load_state_dict(module.state_dict(), strict=True)
    owned = {p.data_ptr() for p in model.parameters()}
    assert not owned & {p.data_ptr() for p in module.parameters()}
    assert all(node.op != "call_module" or ".Container" not in str(node.target) for node in module.graph.nodes)
