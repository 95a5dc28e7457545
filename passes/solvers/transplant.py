"""Neuron Transplantation: of all parents' neurons side by side, keep the most important (Oez et al., 2024).

Before anything is dropped, the concatenation is block-diagonal and computes all parents at once: ``merge`` and
``unmerge`` are the identity on the stacked axis, and pairs of neurons from different parents start at zero. Dropping
keeps the ``target`` neurons of largest importance: selection rows, and their transpose. All of it happens at once per
space, so the order of spaces does not matter.

Neurons with the same activations carry nothing twice. Where there are more neurons than ``target``, such copies are put
into one group first, as many as have to go, which costs nothing; so copies of one network give that network.
"""

import torch
from torch import Tensor

from fxfuse.passes.solvers.groups import check, masses, owners, renumber, solve_hard
from fxfuse.passes.solvers.threads import one_thread
from fxfuse.types import Grouping, SpaceStatistics

# Squared distance, relative to the two neurons' energies, up to which they are copies: rounding of float32 activations.
SAME = 1e-6


@one_thread()
def solve(
    stats: SpaceStatistics,
    target: int,
    *,
    weights: tuple[float, ...],
    generator: torch.Generator,  # noqa: ARG001  (deterministic; one signature for all solvers)
    balanced: bool = False,
) -> Grouping:
    """Keep exactly ``target`` neurons; any number of parents, any widths. Ties go to the earlier parent.

    ``balanced`` prunes each parent before it is joined with the others: each keeps its share of the target by width.

    ``error`` is the dropped neurons' share of the energy. A target beyond all neurons together copies the heaviest.
    """
    check(stats, target, weights)
    gram = stats.gram.to("cpu", torch.float64)
    importance = masses(stats, weights)
    active = importance.nonzero()[:, 0]
    labels = join_copies(gram[active][:, active], len(active) - target)
    groups = int(labels.max()) + 1
    whole = solve_hard(stats, max(groups, target), weights, lambda _points, _groups: labels)
    if groups <= target:
        return whole
    mass = torch.zeros(groups, dtype=torch.float64).index_add_(0, labels, importance[active])
    if balanced:
        owner = torch.full((groups,), len(weights)).scatter_reduce_(0, labels, owners(stats)[active], "amin")
        kept = _best_of_each(mass, owner, target)
    else:
        kept = mass.argsort(descending=True, stable=True)[:target].sort().values
    energy = importance * gram.diagonal()
    dropped = float(energy[active[~torch.isin(labels, kept)]].sum())
    total = float(energy.sum())
    return Grouping(
        space=stats.space,
        merge=tuple(part[kept] for part in whole.merge),
        unmerge=tuple(part[:, kept] for part in whole.unmerge),
        error=dropped / total if total > 0 else 0.0,
    )


def _best_of_each(mass: Tensor, owner: Tensor, target: int) -> Tensor:
    """The ``target`` heaviest where every owner has a part of its size: shares are rounded by largest remainder."""
    size = torch.bincount(owner)
    exact = size * target / len(owner)
    part = exact.floor().long()
    part[(part - exact).argsort(stable=True)[: target - int(part.sum())]] += 1
    order = mass.argsort(descending=True, stable=True)
    kept = [order[owner[order] == p][:count] for p, count in enumerate(part.tolist())]
    return torch.cat(kept).sort().values


def join_copies(gram: Tensor, most: int) -> Tensor:
    """Groups of neurons that are copies of each other, all others alone; no more than ``most`` neurons are joined.

    Returns group numbers from 0 (``N``), in the order of first members. The closest copies are joined first.
    """
    labels = torch.arange(len(gram))
    if most <= 0:
        return labels
    energy = gram.diagonal()
    distance = (energy[:, None] + energy[None, :] - 2 * gram).clamp(min=0)
    bound = energy[:, None] + energy[None, :]
    copy = distance <= SAME * bound
    first = copy.to(torch.uint8).argmax(1)  # the first neuron that this one is a copy of: itself, if none comes before
    first = torch.where(copy[first, first[first]], first[first], first)
    later = (first < labels).nonzero()[:, 0]
    ratio = distance[later, first[later]] / bound[later, first[later]].clamp(min=torch.finfo(torch.float64).tiny)
    joined = later[ratio.argsort(stable=True)[:most]]
    labels[joined] = first[joined]
    return renumber(labels)
