"""The identity that defines neuron spaces: permute them all, and the function stays the same.

With ``Q`` a random permutation of every space (of every owner's neurons apart, for a space inside another), each stored
tensor ``W`` becomes ``Q_written W Q_read^T``. Then ``f(x; QW) = f(x; W)`` for every ``x``, exactly; in float64 what is
left is rounding, about ``1e-15``. A law that holds only because the network ignores its neurons proves nothing:
randomise the weights first.
"""

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from fxfuse.layouts import merge_tensors, permutation_groupings
from fxfuse.passes.precision import doubled, widened
from fxfuse.types import Axes, Program


def permuted(program: Program, axes: Axes, seed: int = 0, *, keep: frozenset[str] = frozenset()) -> fx.GraphModule:
    """A float64 copy of the program's module with every space permuted at random; tensors in ``keep`` stay as they
    are, which breaks the law wherever they matter."""
    module = doubled(program.module)
    _permute(module, axes, seed, keep)
    return module


def _permute(module: fx.GraphModule, axes: Axes, seed: int, keep: frozenset[str]) -> None:
    groupings = permutation_groupings(axes.spaces, torch.Generator().manual_seed(seed))
    done: set[int] = set()
    with torch.no_grad():
        for name, value in module.state_dict(keep_vars=True).items():
            if name in keep or id(value) in done or not (value.is_floating_point() or value.is_complex()):
                continue
            done.add(id(value))  # tied tensors are one
            value.copy_(merge_tensors([value], [axes.state[name]], axes.spaces, groupings, (1.0,)))


def permutation_error(program: Program, axes: Axes, seed: int = 0, *, keep: frozenset[str] = frozenset()) -> float:
    """The largest change of an output on the example, relative to that output's largest value, in float64."""
    example = tuple(widened(x) for x in program.example)
    module = doubled(program.module)
    with torch.no_grad():
        before = [x.clone() for x in _tensors(module(*example))]
        _permute(module, axes, seed, keep)
        after = _tensors(module(*example))
    worst = 0.0
    for a, b in zip(before, after, strict=True):
        if a.numel():
            scale = a.abs().max().item() or 1.0
            worst = max(worst, (a - b).abs().max().item() / scale)
    return worst


def _tensors(output: object) -> list[Tensor]:
    found = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    return [leaf if leaf.is_floating_point() or leaf.is_complex() else leaf.double() for leaf in found]
