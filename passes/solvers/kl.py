"""Assignment of Gaussian posteriors by Kullback-Leibler divergence (Claici et al., 2020).

A neuron is a Gaussian over its weights; ``D_ij`` is the divergence of the posteriors of neurons i and j
(:mod:`fxfuse.passes.posteriors`), symmetrised. Parents are placed into groups one after the other, the widest first;
each by the assignment that costs least, the cost of a neuron in a group being its mean divergence from the members, by
the parents' weights. Then each parent is taken out and placed anew until nothing improves. A group (the paper's atom)
is merged by precision afterwards (:mod:`fxfuse.passes.merges`); here only who belongs to it is decided.

Two parents need one assignment, which is optimal. Widths may differ: the widest must have the target width.
"""

import torch
from torch import Tensor

from fxfuse.errors import MethodError
from fxfuse.passes.solvers.assignment import assign
from fxfuse.passes.solvers.groups import Points, check, owners, solve_hard
from fxfuse.passes.solvers.threads import one_thread
from fxfuse.types import Grouping, SpaceStatistics

MAX_SWEEPS = 50


@one_thread()
def solve(
    stats: SpaceStatistics,
    target: int,
    *,
    weights: tuple[float, ...],
    generator: torch.Generator,  # noqa: ARG001  (deterministic; one signature for all solvers)
) -> Grouping:
    """Group by assignment on ``stats.divergence``. Where that is missing, on squared distances, which are the
    divergences of posteriors of equal precision.

    Raises :class:`MethodError` unless the widest parent with weight has width ``target``.
    """
    check(stats, target, weights)
    check_space(stats.widths, target, weights)
    share = torch.tensor(weights, dtype=torch.float64)[owners(stats)]
    divergence = stats.divergence
    if divergence is None:
        energy = stats.gram.diagonal()
        divergence = energy[:, None] + energy[None, :] - 2 * stats.gram
    active = share.nonzero()[:, 0]
    cost = divergence.to("cpu", torch.float64)[active][:, active]

    def labeller(points: Points, slots: int) -> Tensor:
        parents = [(points.owner == p).nonzero()[:, 0] for p in sorted(set(points.owner.tolist()))]
        return place_all(cost, points.mass, parents, slots)

    return solve_hard(stats, target, weights, labeller, share)


def check_space(widths: tuple[int, ...], target: int, weights: tuple[float, ...]) -> None:
    """Raise :class:`MethodError` for a target of another width than the widest parent with weight has."""
    widest = max(width for width, weight in zip(widths, weights, strict=True) if weight > 0)
    if widest != target:
        raise MethodError(
            f"matching posteriors keeps the widest parent's width {widest}. Got target {target}; choose a method that "
            "changes widths (kmeans, hungarian, zip, transplant)"
        )


def place_all(cost: Tensor, share: Tensor, parents: list[Tensor], slots: int) -> Tensor:
    """The group of every neuron: ``cost`` is ``N x N``, ``share`` each neuron's parent's weight."""
    order = sorted(parents, key=len, reverse=True)
    labels = torch.full((len(share),), -1)
    labels[order[0]] = torch.arange(len(order[0]))
    for members in order[1:]:
        labels[members] = _place(cost, share, labels, members, slots)
    if len(parents) == 2:
        return labels
    best = _total(cost, share, labels)
    for _ in range(MAX_SWEEPS):
        trial = labels.clone()
        for members in order[1:]:  # the widest gives the groups their numbers
            trial[members] = -1
            trial[members] = _place(cost, share, trial, members, slots)
        value = _total(cost, share, trial)
        if not value < best * (1 - 1e-9):
            break
        labels, best = trial, value
    return labels


def _place(cost: Tensor, share: Tensor, labels: Tensor, members: Tensor, slots: int) -> Tensor:
    placed = (labels >= 0).nonzero()[:, 0]
    mass = torch.zeros(slots, dtype=torch.float64).index_add_(0, labels[placed], share[placed])
    total = torch.zeros(slots, len(members), dtype=torch.float64)
    total.index_add_(0, labels[placed], share[placed, None] * cost[placed][:, members])
    return assign((total / mass[:, None]).T)


def _total(cost: Tensor, share: Tensor, labels: Tensor) -> float:
    same = labels[:, None] == labels[None, :]
    return float((share[:, None] * share[None, :] * cost)[same].sum())
