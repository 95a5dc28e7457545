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

from fxfuse.passes.solvers.groups import assemble, attach, check, masses, membership, owners, renumber
from fxfuse.passes.solvers.threads import one_thread
from fxfuse.products import Products
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
    importance = masses(stats, weights)
    active = importance.nonzero()[:, 0]
    found = join_copies(stats.products, active, len(active) - target)
    groups = int(found.max()) + 1
    if groups <= target:
        return assemble(stats, attach(stats, importance, found), importance, target, importance)
    mass = torch.zeros(groups, dtype=torch.float64).index_add_(0, found, importance[active])
    if balanced:
        owner = torch.full((groups,), len(weights)).scatter_reduce_(0, found, owners(stats)[active], "amin")
        kept = _best_of_each(mass, owner, target)
    else:
        kept = mass.argsort(descending=True, stable=True)[:target].sort().values
    energy = importance * stats.products.energies
    dropped = float(energy[active[~torch.isin(found, kept)]].sum())
    total = float(energy.sum())
    labels = attach(stats, importance, found)
    return membership(stats, labels, importance / mass[labels], kept, dropped / total if total > 0 else 0.0)


def _best_of_each(mass: Tensor, owner: Tensor, target: int) -> Tensor:
    """The ``target`` heaviest where every owner has a part of its size: shares are rounded by largest remainder."""
    size = torch.bincount(owner)
    exact = size * target / len(owner)
    part = exact.floor().long()
    part[(part - exact).argsort(stable=True)[: target - int(part.sum())]] += 1
    order = mass.argsort(descending=True, stable=True)
    kept = [order[owner[order] == p][:count] for p, count in enumerate(part.tolist())]
    return torch.cat(kept).sort().values


def join_copies(products: Products, active: Tensor, most: int) -> Tensor:
    """Groups of neurons that are copies of each other, all others alone; no more than ``most`` neurons are joined.

    ``active`` lists the neurons (``n``). Returns their group numbers from 0 (``n``), in the order of first members. The
    closest copies are joined first.
    """
    labels = torch.arange(len(active))
    if most <= 0:
        return labels
    earlier, later, apart = products.close(SAME)
    both = torch.isin(earlier, active) & torch.isin(later, active)
    earlier, later, apart = (
        torch.searchsorted(active, earlier[both]),
        torch.searchsorted(active, later[both]),
        apart[both],
    )
    first = labels.scatter_reduce(0, later, earlier, "amin")  # the first neuron that this one is a copy of, or itself
    nearest = earlier == first[later]
    joined = later[nearest][apart[nearest].argsort(stable=True)[:most]]
    labels[joined] = first[first[joined]]  # which may be a copy itself
    return renumber(labels)
