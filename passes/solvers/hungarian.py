"""Importance-weighted assignment: groups that hold at most one neuron of each parent.

Joining neuron i (mass ``s_i``) to a group of mass ``S`` and mean ``t`` raises the weighted within-group sum of
squares by

    s_i S / (s_i + S) ||a_i - t||^2                      (for two neurons: s_i s_j / (s_i + s_j) ||a_i - a_j||^2)

and by nothing where the group is empty. Placing all neurons of one parent, the others held fixed, is therefore a
linear assignment with exactly these costs. Two parents need one assignment, which is optimal. With more, parents are
placed one after the other, the heaviest first, and then each is taken out and placed anew until little improves:
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
from fxfuse.passes.solvers.groups import Points, renumber, solve_hard
from fxfuse.passes.solvers.threads import one_thread
from fxfuse.types import Grouping, SpaceStatistics

MAX_SWEEPS = 50

SETTLED = 1e-5
"""Sweeps go on while one brings more than this part of the neurons' energy: the last ones bring next to nothing."""

ROWS_AT_ONCE = 1024
"""Rows of the Gram matrix that are weighted at a time."""


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
    state = _Slots(points, slots)
    for members in parents:
        state.put(members, state.best(members))
    labels = _settle(state, parents, sweeps) if len(parents) > 2 else state.labels
    labels = renumber(labels)
    if slots > target:
        labels = agglomerate(points.gram, points.mass, labels, target)
    return labels


def _settle(state: "_Slots", parents: list[Tensor], sweeps: int) -> Tensor:
    """Place every parent anew until a whole sweep brings next to nothing."""
    least = SETTLED * float((state.points.mass * state.points.gram.diagonal()).sum())
    best, labels = state.kept_energy(), state.labels.clone()
    for _ in range(sweeps):
        for members in parents:
            state.take(members)
            state.put(members, state.best(members))
        value = state.kept_energy()
        gain = value - best
        if gain > 0:
            labels, best = state.labels.clone(), value
        if gain <= least:
            break
    return labels


class _Slots:
    """Groups under way: which neuron is in which, with masses ``S`` and ``B`` as :mod:`.groups` defines them."""

    def __init__(self, points: Points, slots: int) -> None:
        self.points = points
        self.labels = torch.full((len(points.mass),), -1)
        self.total = points.mass.new_zeros(slots)
        self.cross = points.gram.new_zeros(slots, len(points.mass))

    def put(self, members: Tensor, slots: Tensor) -> None:
        """Neurons without a group go into ``slots``."""
        self.labels[members] = slots
        self._add(members, slots, 1)

    def take(self, members: Tensor) -> None:
        """Neurons leave their groups; what a group had of them alone is exactly zero again."""
        slots = self.labels[members]
        self.labels[members] = -1
        self._add(members, slots, -1)
        empty = self._empty()
        self.total[empty] = 0.0
        self.cross[empty] = 0.0

    def _add(self, members: Tensor, slots: Tensor, sign: int) -> None:
        mass = self.points.mass
        self.total.index_add_(0, slots, mass[members], alpha=sign)
        for some, where in zip(torch.split(members, ROWS_AT_ONCE), torch.split(slots, ROWS_AT_ONCE), strict=True):
            self.cross.index_add_(0, where, mass[some, None] * self.points.gram[some], alpha=sign)

    def _empty(self) -> Tensor:
        counts = torch.bincount(self.labels[self.labels >= 0], minlength=len(self.total))
        return counts == 0

    def energies(self) -> Tensor:
        """``Q`` of every group."""
        placed = (self.labels >= 0).nonzero()[:, 0]
        groups = self.labels[placed]
        own = self.points.mass[placed] * self.cross[groups, placed]
        return torch.zeros_like(self.total).index_add_(0, groups, own)

    def kept_energy(self) -> float:
        """What the groups' means hold of the neurons' energy: the scatter falls as this rises."""
        full = ~self._empty()
        return float((self.energies()[full] / self.total[full]).sum())

    def best(self, members: Tensor) -> Tensor:
        """The best group for each of ``members`` (one parent's neurons), given all neurons that have a group."""
        empty = self._empty()
        vacancies, slots = int(empty.sum()), len(empty)
        if vacancies >= len(members):
            return empty.nonzero()[: len(members), 0]
        # cost of a member in a group; free where the group is empty
        own, total = self.points.mass[members][:, None], self.total
        safe = torch.where(empty, 1.0, total)
        cost = self.cross[:, members].T * (-2 / safe)
        cost += self.points.gram.diagonal()[members][:, None]
        cost += self.energies() / safe**2
        cost.clamp_(min=0).mul_(own * total / (own + total))
        if vacancies:
            # Rows that stand for "nobody" may not take an empty group: so every group ends up with a member.
            nobody = torch.where(empty, torch.inf, 0.0).expand(slots - len(members), -1)
            cost = torch.cat([cost, nobody])
        return assign(cost)[: len(members)]
