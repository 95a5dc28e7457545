"""Importance-weighted k-means over all parents' neurons, entirely on the Gram matrix.

Minimises ``sum_i s_i ||a_i - t_g(i)||^2`` over partitions into exactly k non-empty groups, ``t_g`` being the weighted
mean. Lloyd's iteration needs distances alone, and with ``S, B, Q`` of :mod:`fxfuse.passes.solvers.groups`

    ||a_i - t_g||^2 = G_ii - 2 B_gi / S_g + Q_g / S_g^2,

so an iteration costs ``O(N k)`` for the distances and ``O(N)`` per neuron that moved for ``B``: the activations are
never needed. Starts: the assignment of :mod:`fxfuse.passes.solvers.hungarian`, and k-means++ (Arthur and
Vassilvitskii, 2007) with importance as sample weight. The best result is kept; ties go to the assignment, and so do
differences below the rounding of a Gram matrix whose products are made in float32.
"""

import math

import torch
from torch import Tensor

from fxfuse.errors import MethodError
from fxfuse.passes.solvers.groups import BAND, Points, group_sums, scatter, solve_hard
from fxfuse.passes.solvers.hungarian import matched_labels
from fxfuse.passes.solvers.threads import one_thread
from fxfuse.types import Grouping, SpaceStatistics

MAX_ITERATIONS = 300

ROUNDING = 1e-6
"""Part of the neurons' energy that a sum of float32 products may be wrong by."""


@one_thread()
def solve(
    stats: SpaceStatistics,
    target: int,
    *,
    weights: tuple[float, ...],
    generator: torch.Generator,
    restarts: int = 1,
) -> Grouping:
    """Group by k-means with k = ``target``: one start from the assignment, ``restarts`` from k-means++.

    Any number of parents, any widths. Every group has a member; with fewer neurons than ``target`` the heaviest
    are copied (see :func:`fxfuse.passes.solvers.groups.assemble`).
    Raises :class:`MethodError` for fewer than no restarts.
    """
    check_space(stats.widths, target, weights, restarts)

    def labeller(points: Points, groups: int) -> Tensor:
        starts = [matched_labels(points, groups, sweeps=1)]
        starts += [plus_plus(points, groups, generator) for _ in range(restarts)]
        best, *others = [lloyd(points, start, groups) for start in starts]
        least = scatter(points, best, groups)
        noise = ROUNDING * float((points.mass * points.gram.diagonal()).sum())
        for labels in others:
            found = scatter(points, labels, groups)
            if found < least - noise:
                best, least = labels, found
        return best

    return solve_hard(stats, target, weights, labeller)


def check_space(widths: tuple[int, ...], target: int, weights: tuple[float, ...], restarts: int = 1) -> None:  # noqa: ARG001
    """Raise :class:`MethodError` for fewer than no restarts; k-means takes any widths."""
    if restarts < 0:
        raise MethodError(f"restarts of kmeans must be at least 0. Got {restarts}")


def lloyd(points: Points, labels: Tensor, groups: int) -> Tensor:
    """Lloyd's iteration from a partition (``N`` labels, every group non-empty) to a fixed point."""
    gram, mass = points.gram, points.mass
    energy = gram.diagonal()
    index = torch.arange(len(mass))
    margin = 1e-12 * energy  # a tie is no reason to move, or rounding would keep neurons moving for ever
    labels = labels.clone()
    total, cross, inner = group_sums(gram, mass, labels, groups)
    offset = torch.addcmul((inner / total**2)[:, None], cross, (-2 / total)[:, None])  # ||a_i - t_g||^2 - G_ii
    least, nearest = offset.min(0)
    for _ in range(MAX_ITERATIONS):
        current = offset[labels, index]
        new = torch.where(least < current - margin, nearest, labels)
        new = _fill_empty(new, groups, mass * (torch.minimum(least, current) + energy))
        moved = (new != labels).nonzero()[:, 0]
        if not len(moved):
            break
        old, labels = labels, new
        if 3 * len(moved) > len(mass):
            total, cross, inner = group_sums(gram, mass, labels, groups)
            torch.addcmul((inner / total**2)[:, None], cross, (-2 / total)[:, None], out=offset)
            least, nearest = offset.min(0)
            continue
        weighted = mass[moved, None] * gram[moved]
        cross.index_add_(0, labels[moved], weighted).index_add_(0, old[moved], weighted, alpha=-1)
        total = total.new_zeros(groups).index_add_(0, labels, mass)
        inner = total.new_zeros(groups).index_add_(0, labels, mass * cross[labels, index])
        changed = torch.unique(torch.cat([old[moved], labels[moved]]))
        offset[changed] = torch.addcmul((inner / total**2)[changed, None], cross[changed], (-2 / total)[changed, None])
        least, nearest = _nearest(offset, changed, least, nearest)
    return labels


def _nearest(offset: Tensor, changed: Tensor, least: Tensor, nearest: Tensor) -> tuple[Tensor, Tensor]:
    """The columns' least entries and their rows, after the rows ``changed`` got new values."""
    lowest, row = offset[changed].min(0)
    closer = lowest < least
    least, nearest = torch.where(closer, lowest, least), torch.where(closer, changed[row], nearest)
    # What was nearest may have moved away: these columns have to be looked through as a whole.
    touched = torch.zeros(len(offset), dtype=torch.bool)
    touched[changed] = True
    lost = (touched[nearest] & ~closer).nonzero()[:, 0]
    if len(lost):
        least[lost], nearest[lost] = offset[:, lost].min(0)
    return least, nearest


def _fill_empty(labels: Tensor, groups: int, loss: Tensor) -> Tensor:
    """Give each empty group the worst-served neuron of the groups that can spare one."""
    count = torch.bincount(labels, minlength=groups)
    empty = (count == 0).nonzero()[:, 0].tolist()
    if not empty:
        return labels
    labels = labels.clone()
    worst = iter(loss.argsort(descending=True, stable=True).tolist())
    for group in empty:
        neuron = next(i for i in worst if count[labels[i]] > 1)
        count[labels[neuron]] -= 1
        count[group] += 1
        labels[neuron] = group
    return labels


def plus_plus(points: Points, groups: int, generator: torch.Generator) -> Tensor:
    """A k-means++ partition: seeds drawn by ``s_i * (squared distance to the nearest seed)``, best of a few draws.

    Distances are in single precision, from products in double: every draw reads a row for each of its trials.
    """
    mass, light = points.mass, points.mass.float()
    apart = _distances(points.gram)
    trials = 2 + int(math.log(groups))
    draws = torch.rand(groups, trials, generator=generator, dtype=torch.float64)
    taken = torch.zeros(len(mass), dtype=torch.bool)
    nearest = torch.full_like(light, math.inf)
    labels = torch.zeros(len(mass), dtype=torch.long)
    closest = apart.new_empty(trials, len(mass))
    for group in range(groups):
        chance = (mass if group == 0 else mass * nearest).masked_fill(taken, 0.0)
        if float(chance.sum()) <= 0:  # only copies of seeds are left
            chance = mass.masked_fill(taken, 0.0)
        ladder = chance.cumsum(0)
        drawn = torch.searchsorted(ladder, draws[group] * ladder[-1], right=True).clamp(max=len(mass) - 1)
        drawn = drawn[~taken[drawn]]
        if not len(drawn):  # rounding at the ladder's upper end
            drawn = chance.argmax()[None]
        tried = torch.minimum(apart[drawn], nearest, out=closest[: len(drawn)])
        best = int((tried @ light).argmin())
        seed = drawn[best]
        labels[apart[seed] < nearest] = group
        nearest = tried[best].clone()
        taken[seed], nearest[seed], labels[seed] = True, 0.0, group
    return labels


def _distances(gram: Tensor) -> Tensor:
    """Squared distances (``N x N``, float32), some rows at a time."""
    energy = gram.diagonal()
    apart = torch.empty(gram.shape, dtype=torch.float32)
    for start in range(0, len(gram), BAND):
        rows = slice(start, start + BAND)
        apart[rows] = (energy[rows, None] + energy).sub_(gram[rows], alpha=2).clamp_(min=0)
    return apart
