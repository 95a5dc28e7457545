"""Hard groupings: every neuron belongs to one group, every group has a weighted mean as its target.

With masses ``s_i >= 0`` (importance) and activations ``a_i`` known only through ``G_ij = <a_i, a_j>``:

    S_g = sum_{i in g} s_i            mass of a group
    t_g = sum_{i in g} s_i a_i / S_g  its target, so merge[g, i] = s_i / S_g and unmerge[i, g] = 1
    B_gj = sum_{i in g} s_i G_ij      hence <t_g, a_j> = B_gj / S_g
    Q_g = sum_{j in g} s_j B_gj       hence <t_g, t_g> = Q_g / S_g^2

and the scatter ``sum_i s_i ||a_i - t_g(i)||^2 = sum_i s_i G_ii - sum_g Q_g / S_g``. Everything costs ``O(N^2)``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fxfuse.errors import MethodError
from fxfuse.types import Grouping, SpaceStatistics

# A neuron without importance still has to be told from its like: it gets this part of its parent's mean importance.
LEAST_SHARE = 1e-9

BAND = 512
"""Rows of a matrix that are worked on at a time."""


@dataclass(frozen=True, slots=True)
class Points:
    """The neurons that a labeller groups: ``N`` of them, all of positive mass.

    ``gram`` is ``N x N``, ``mean`` and ``mass`` are ``N``, ``owner`` says which parent a neuron comes from.
    """

    gram: Tensor
    mean: Tensor
    mass: Tensor
    owner: Tensor


Labeller = Callable[[Points, int], Tensor]
"""Maps points and a number of groups to a group number per neuron."""


def owners(stats: SpaceStatistics) -> Tensor:
    """The parent of every stacked neuron, shape ``N``."""
    return torch.repeat_interleave(torch.arange(len(stats.widths)), torch.tensor(stats.widths))


def masses(stats: SpaceStatistics, weights: tuple[float, ...]) -> Tensor:
    """Importance made safe to divide by, shape ``N``, float64.

    Zero exactly where the parent's weight is zero; elsewhere positive: a neuron without importance gets a share too
    small to matter beside any other, and a parent without any importance gets a uniform one.
    """
    importance = stats.importance.to("cpu", torch.float64)
    if bool((importance < 0).any()):
        raise MethodError(f"importance of space {stats.space} must be non-negative. Got {float(importance.min()):g}")
    parts = []
    for share, weight in zip(torch.split(importance, list(stats.widths)), weights, strict=True):
        even = weight / max(len(share), 1)
        total = float(share.sum())
        if weight == 0.0:
            parts.append(torch.zeros_like(share))
        elif total > 0.0:
            parts.append(share.clamp(min=LEAST_SHARE * total / len(share)))
        else:
            parts.append(torch.full_like(share, even))
    return torch.cat(parts)


def group_sums(gram: Tensor, mass: Tensor, labels: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """``S`` (groups), ``B`` (groups x N) and ``Q`` (groups) as the module's docstring defines them."""
    total = mass.new_zeros(groups).index_add_(0, labels, mass)
    cross = gram.new_zeros(groups, gram.shape[1])
    for start in range(0, len(gram), BAND):  # no second matrix of that size
        rows = slice(start, start + BAND)
        cross.index_add_(0, labels[rows], mass[rows, None] * gram[rows])
    own = cross[labels, torch.arange(len(labels))]
    return total, cross, mass.new_zeros(groups).index_add_(0, labels, mass * own)


def scatter(points: Points, labels: Tensor, groups: int) -> float:
    """The weighted within-group sum of squares, never negative."""
    total, _, energy = group_sums(points.gram, points.mass, labels, groups)
    kept = total > 0
    return max(float((points.mass * points.gram.diagonal()).sum() - (energy[kept] / total[kept]).sum()), 0.0)


def renumber(labels: Tensor) -> Tensor:
    """The same partition, groups numbered 0, 1, ... in the order of their first members."""
    _, inverse = torch.unique(labels, return_inverse=True)
    first = torch.full((int(inverse.max()) + 1,), len(labels)).scatter_reduce_(
        0, inverse, torch.arange(len(labels)), reduce="amin"
    )
    return first.argsort().argsort()[inverse]


def solve_hard(
    stats: SpaceStatistics,
    target: int,
    weights: tuple[float, ...],
    labeller: Labeller,
    mass: Tensor | None = None,
) -> Grouping:
    """Run ``labeller`` on the neurons of parents with weight, attach all others to the nearest target, assemble.

    Parents of weight zero have no part in any target; their unmerge only says where their neurons are best found.
    With no more neurons than ``target`` each stays alone and :func:`assemble` fills up with copies. ``mass`` (``N``)
    replaces importance in the means, not in the error; it must be zero where the parent's weight is.
    """
    check(stats, target, weights)
    gram = stats.gram
    importance = masses(stats, weights)
    mass = importance if mass is None else mass
    active = mass.nonzero()[:, 0]
    points = Points(
        gram[active][:, active] if len(active) < len(mass) else gram,
        stats.mean.to("cpu", torch.float64)[active],
        mass[active],
        owners(stats)[active],
    )
    alone = len(active) <= target
    found = torch.arange(len(active)) if alone else renumber(labeller(points, target))
    return assemble(stats, attach(stats, mass, found), mass, target, importance)


def attach(stats: SpaceStatistics, mass: Tensor, found: Tensor) -> Tensor:
    """Group numbers of all neurons (``N``): those with mass have the numbers ``found``, others the nearest target's."""
    rest = (mass == 0).nonzero()[:, 0]
    if not len(rest):
        return found
    active = mass.nonzero()[:, 0]
    groups = int(found.max()) + 1
    inside, outside = stats.gram[active][:, active], stats.gram[active][:, rest]
    total, _, energy = group_sums(inside, mass[active], found, groups)
    cross = outside.new_zeros(groups, len(rest)).index_add_(0, found, mass[active][:, None] * outside)
    labels = torch.empty(len(mass), dtype=torch.long)
    labels[active] = found
    labels[rest] = (energy[:, None] / total[:, None] ** 2 - 2 * cross / total[:, None]).argmin(0)
    return labels


def assemble(stats: SpaceStatistics, labels: Tensor, mass: Tensor, target: int, importance: Tensor) -> Grouping:
    """A hard grouping whose labels run over 0 .. ``groups - 1``.

    Fewer groups than ``target``: the heaviest groups (mass times energy) get a second copy, then a third, and so on.
    Copies have the same merge row and share the unmerge evenly, so that a network that reads them computes the same.
    """
    groups = int(labels.max()) + 1
    total = mass.new_zeros(groups).index_add_(0, labels, mass)
    if bool((total == 0).any()):  # groups of neurons without mass: plain means
        mass = torch.where((total == 0)[labels], torch.ones_like(mass), mass)
        total = mass.new_zeros(groups).index_add_(0, labels, mass)
    share = mass / total[labels]
    origin = torch.arange(groups)
    if target > groups:
        heaviest = (group_sums(stats.gram, mass, labels, groups)[2] / total).argsort(descending=True, stable=True)
        origin = torch.cat([origin, heaviest.repeat(-(-(target - groups) // groups))[: target - groups]])
    return membership(stats, labels, share, origin, hard_error(stats.gram, labels, share, importance))


def membership(stats: SpaceStatistics, labels: Tensor, share: Tensor, origin: Tensor, error: float) -> Grouping:
    """Merge and unmerge matrices of groups, where fused neuron ``k`` is, or copies, the mean of group ``origin[k]``.

    ``labels`` and ``share`` (``N``) say to which group every neuron belongs and what part of its mean it is. Groups
    without a fused neuron are dropped.
    """
    fused, neuron = (origin[:, None] == labels).nonzero(as_tuple=True)
    even = 1 / torch.bincount(origin, minlength=int(labels.max()) + 1).to(torch.float64)[labels]
    merge, unmerge, start = [], [], 0
    for width in stats.widths:
        own = (neuron >= start) & (neuron < start + width)
        row, column, which = fused[own], neuron[own] - start, neuron[own]
        merge.append(share.new_zeros(len(origin), width).index_put_((row, column), share[which]))
        unmerge.append(share.new_zeros(width, len(origin)).index_put_((column, row), even[which]))
        start += width
    return Grouping(space=stats.space, merge=tuple(merge), unmerge=tuple(unmerge), error=error)


def hard_error(gram: Tensor, labels: Tensor, share: Tensor, importance: Tensor) -> float:
    """The grouping error for targets ``t_g = sum_{i in g} share_i a_i``: see :class:`fxfuse.types.Grouping`."""
    groups = int(labels.max()) + 1
    _, cross, energy = group_sums(gram, share, labels, groups)
    own = cross[labels, torch.arange(len(labels))]
    distance = (gram.diagonal() - 2 * own + energy[labels]).clamp(min=0)
    whole = float((importance * gram.diagonal()).sum())
    return float((importance * distance).sum()) / whole if whole > 0 else 0.0


def centred(gram: Tensor, mean: Tensor) -> Tensor:
    """Covariances ``G_ij - m_i m_j``; rows and columns of neurons that do not vary are exactly zero."""
    covariance = gram - mean[:, None] * mean[None, :]
    still = covariance.diagonal() <= 1e-12 * gram.diagonal()
    return covariance.masked_fill_(still[:, None] | still[None, :], 0.0)


def check(stats: SpaceStatistics, target: int, weights: tuple[float, ...]) -> None:
    """Raise :class:`MethodError` where a solver's arguments do not fit together."""
    if target < 1:
        raise MethodError(f"target width of space {stats.space} must be at least 1. Got {target}")
    if len(weights) != len(stats.widths):
        raise MethodError(f"space {stats.space} has {len(stats.widths)} parents but {len(weights)} weights were given")
    if min(weights) < 0 or sum(weights) <= 0:
        raise MethodError(f"parent weights must be non-negative with a positive sum. Got {weights}")
    if any(blocks != 1 for blocks in stats.outer_widths):
        raise MethodError(f"space {stats.space} lies inside another one; group the outer space and its blocks")
