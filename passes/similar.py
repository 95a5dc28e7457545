"""Fuse only the neurons that are similar enough: a width for every space, as a budget allows.

At the reference's widths the neurons are assigned to one another (:mod:`fxfuse.passes.solvers.hungarian`). How ill a
neuron ``i`` is served by its group, whose mean is ``t``, is

    e_i = ||a_i - t||^2 / ||a_i||^2

from the Gram matrix alone. For a threshold ``h``, the same in all spaces, the members of a group with ``e_i > h`` are
to stay by themselves (one member of each group always stays), and the space becomes that much wider. A wider space
costs more in every parameter that has it, also in the products of foreign neurons, whose weights begin at zero. The
smallest threshold whose network fits the budget is taken; the assignment is then made anew at the widths found, and
leaves those alone that are worst to join.

Spaces that own others or lie inside one, and those whose size is a number in the model's code, keep their width.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fxfuse.errors import MethodError
from fxfuse.passes.correspond import Correspondence
from fxfuse.passes.costs import Budget, Unit, level_costs
from fxfuse.passes.resize import resize, weightless
from fxfuse.passes.solvers.hungarian import solve
from fxfuse.types import Analysis, SpaceStatistics


@dataclass(frozen=True, slots=True)
class Widths:
    """What was found: ``sizes`` by space, the threshold, how many neurons stay by themselves, and the costs in the
    budget's unit: what it is, what is allowed, and what the reference's own widths cost."""

    sizes: Mapping[int, int]
    threshold: float
    apart: int
    cost: int
    allowed: float
    least: int


def widened(
    pairs: Correspondence,
    statistics: Mapping[int, SpaceStatistics],
    weights: tuple[float, ...],
    budget: Budget,
    *,
    fixed: Collection[int] = (),
) -> tuple[Correspondence, Widths]:
    """The parents with a reference as wide as ``budget`` allows; spaces in ``fixed`` keep their width.

    Raises :class:`MethodError` for a budget below the reference's own cost.
    """
    reference = pairs.reference
    own = {space.id: space.size for space in reference.axes.spaces}
    least = sum(level_costs(reference, budget.unit))
    allowed = budget.amount * least if budget.relative else budget.amount
    if least > allowed * (1 + 1e-9):
        raise MethodError(
            f"a budget of {allowed:,.0f} {budget.unit} is below the smallest possible network, which has {least:,}; "
            "give that much, or a narrower target."
        )
    errors = {
        space: _misfits(statistics[space], own[space], weights)
        for space in _free(reference, statistics, fixed)
        if _resizable(reference, {**own, space: own[space] + 1})
    }
    steps = sorted({round(e, 9) for groups in errors.values() for group in groups for e in group}, reverse=True)
    low, high = 0, len(steps)  # how many of the thresholds, from above, are passed
    while low < high:
        middle = (low + high + 1) // 2
        fits = _cost(reference, _sizes(own, errors, steps, middle), budget.unit) <= allowed * (1 + 1e-9)
        low, high = (middle, high) if fits else (low, middle - 1)
    sizes = _sizes(own, errors, steps, low)
    found = Widths(
        sizes=sizes,
        threshold=steps[low] if low < len(steps) else 0.0,
        apart=sum(sizes[space] - own[space] for space in own),
        cost=_cost(reference, sizes, budget.unit),
        allowed=allowed,
        least=least,
    )
    return (pairs if sizes == own else replace(pairs, reference=resize(reference, sizes))), found


def _free(reference: Analysis, statistics: Mapping[int, SpaceStatistics], fixed: Collection[int]) -> list[int]:
    """The spaces whose width may be chosen: ordinary ones that have been observed."""
    owners = {space.outer for space in reference.axes.spaces}
    ordinary = (s.id for s in reference.axes.spaces if s.outer is None and s.id not in owners and s.id not in fixed)
    return [space for space in ordinary if space in statistics]


def _misfits(stats: SpaceStatistics, width: int, weights: tuple[float, ...]) -> list[list[float]]:
    """Per group the ``e_i`` of all its members but the best served, of parents that count."""
    grouping = solve(stats, width, weights=weights, generator=torch.Generator().manual_seed(0))
    merge = torch.cat([matrix.double() for matrix in grouping.merge], 1)
    member = torch.cat([matrix.double().T for matrix in grouping.unmerge], 1) > 0
    gram = stats.gram.double()
    cross, inner = merge @ gram, (merge @ gram * merge).sum(1)
    energy = gram.diagonal().clamp_min(1e-12)
    counts = torch.cat([torch.full((n,), w > 0) for n, w in zip(stats.widths, weights, strict=True)])
    groups = []
    for g, row in enumerate(member):
        own: Tensor = (row & counts).nonzero()[:, 0]
        errors = (energy[own] - 2 * cross[g, own] + inner[g]) / energy[own]
        groups.append(sorted(errors.clamp_min(0).tolist())[1:])
    return groups


def _sizes(
    own: Mapping[int, int], errors: Mapping[int, list[list[float]]], steps: list[float], passed: int
) -> dict[int, int]:
    """Widths when all misfits among the ``passed`` largest stay by themselves."""
    if passed == 0:
        return dict(own)
    least = steps[passed - 1]
    apart = {space: sum(round(e, 9) >= least for group in groups for e in group) for space, groups in errors.items()}
    return {space: size + apart.get(space, 0) for space, size in own.items()}


def _cost(reference: Analysis, sizes: Mapping[int, int], unit: Unit) -> int:
    """The cost at other widths."""
    return sum(level_costs(resize(weightless(reference), sizes), unit))


def _resizable(reference: Analysis, sizes: Mapping[int, int]) -> bool:
    try:
        resize(weightless(reference), sizes)
    except MethodError:
        return False
    return True
