"""Importance-weighted assignment: groups that hold at most one neuron of each parent.

Joining neuron i (mass ``s_i``) to a group of mass ``S`` and mean ``t`` raises the weighted within-group sum of
squares by

    s_i S / (s_i + S) ||a_i - t||^2                      (for two neurons: s_i s_j / (s_i + s_j) ||a_i - a_j||^2)

and by nothing where the group is empty. Placing all neurons of one parent, the others held fixed, is therefore a
linear assignment with exactly these costs. Two parents need one assignment, which is optimal. With more, parents are
placed one after the other, the heaviest first, and then each is taken out and placed anew until nothing improves:
every step solves its assignment exactly, so the sum of squares falls monotonically, and the maps between parents are
consistent around any cycle because all go through the groups.

A target wider than the widest parent leaves the neurons alone that are worst to join (the assignment itself chooses
them: every group must end up with a member). A narrower one first matches at the widest parent's width and then joins
the groups themselves, cheapest first, by the same cost (:mod:`fxfuse.passes.solvers.agglomerate`).
"""

import torch
from torch import Tensor

from fxfuse.passes.solvers.agglomerate import agglomerate
from fxfuse.passes.solvers.assignment import assign
from fxfuse.passes.solvers.groups import Points, group_sums, renumber, scatter, solve_hard
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
    """Group by assignment into exactly ``target`` groups; any number of parents, any widths."""
    return solve_hard(stats, target, weights, matched_labels)


def matched_labels(points: Points, target: int, sweeps: int = MAX_SWEEPS) -> Tensor:
    """Group numbers 0 .. ``target - 1`` for more points than groups; ``sweeps`` bounds the improvement rounds."""
    parents = [(points.owner == p).nonzero()[:, 0] for p in sorted(set(points.owner.tolist()))]
    parents.sort(key=lambda members: -float(points.mass[members].sum()))  # stable: ties keep the parents' order
    slots = max(target, *(len(members) for members in parents))
    labels = torch.full((len(points.mass),), -1)
    for members in parents:
        labels[members] = _place(points, labels, members, slots)
    if len(parents) > 2:
        labels = _settle(points, labels, parents, slots, sweeps)
    labels = renumber(labels)
    if slots > target:
        labels = agglomerate(points.gram, points.mass, labels, target)
    return labels


def _settle(points: Points, labels: Tensor, parents: list[Tensor], slots: int, sweeps: int) -> Tensor:
    """Place every parent anew until a whole sweep brings nothing."""
    least = 1e-12 * float((points.mass * points.gram.diagonal()).sum())
    best = scatter(points, labels, slots)
    for _ in range(sweeps):
        trial = labels.clone()
        for members in parents:
            trial[members] = -1
            trial[members] = _place(points, trial, members, slots)
        value = scatter(points, trial, slots)
        if not value < best - least:
            break
        labels, best = trial, value
    return labels


def _place(points: Points, labels: Tensor, members: Tensor, slots: int) -> Tensor:
    """The best group for each of ``members`` (one parent's neurons), given all neurons that have a label."""
    placed = (labels >= 0).nonzero()[:, 0]
    total = torch.zeros(slots, dtype=torch.float64).index_add_(0, labels[placed], points.mass[placed])
    empty = total == 0
    vacancies = int(empty.sum())
    if vacancies >= len(members):
        return empty.nonzero()[: len(members), 0]
    # cost of a member in a group; free where the group is empty
    inside = points.gram[placed][:, placed]
    _, _, energy = group_sums(inside, points.mass[placed], labels[placed], slots)
    cross = torch.zeros(slots, len(members), dtype=torch.float64)
    cross.index_add_(0, labels[placed], points.mass[placed, None] * points.gram[placed][:, members])
    safe = torch.where(empty, 1.0, total)[:, None]
    distance = points.gram.diagonal()[members] - 2 * cross / safe + (energy[:, None] / safe**2)
    own = points.mass[members]
    cost = (own * total[:, None] / (own + total[:, None]) * distance.clamp(min=0)).T
    if vacancies:
        # Rows that stand for "nobody" may not take an empty group: so every group ends up with a member.
        nobody = torch.where(empty, torch.inf, 0.0).expand(slots - len(members), -1)
        cost = torch.cat([cost, nobody])
    return assign(cost)[: len(members)]
