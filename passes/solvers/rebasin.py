"""Permutation matching on activations (Git Re-Basin; Ainsworth et al., 2023), for any number of parents.

Parents are mapped into one common order of ``m`` slots by injections pi_p that maximise

    sum_{p < q} w_p w_q sum_g <a_p,g , a_q,g>,        a_p,g the neuron of parent p in slot g, or nothing.

Two parents need one linear assignment. With more, each parent in turn is assigned to the weighted mean of the others,
in random order, until no parent moves (the paper's MergeMany); every step solves its assignment exactly, so the sum
rises monotonically. Maps from parent to parent go through the slots and so agree around any cycle, as in C2M3
(Crisostomi et al., 2024). The merge is the mean by parents' weights, whatever the neurons' importance.

Parents of different widths: the widest must have the target width. A narrower one leaves slots empty, as if padded by
neurons that never fire, and a fused neuron is the mean of the parents that have one there.
"""

from typing import Literal

import torch
from torch import Tensor

from fxfuse.errors import MethodError
from fxfuse.passes.solvers.assignment import assign
from fxfuse.passes.solvers.groups import Points, centred, check, owners, solve_hard
from fxfuse.passes.solvers.threads import one_thread
from fxfuse.types import Grouping, SpaceStatistics

MAX_SWEEPS = 100


@one_thread()
def solve(
    stats: SpaceStatistics,
    target: int,
    *,
    weights: tuple[float, ...],
    generator: torch.Generator,
    metric: Literal["inner", "correlation"] = "inner",
) -> Grouping:
    """Match neuron to neuron. Raises :class:`MethodError` unless the widest parent with weight has width ``target``."""
    check(stats, target, weights)
    check_space(stats.widths, target, weights, metric)

    def labeller(points: Points, slots: int) -> Tensor:
        similarity = points.gram if metric == "inner" else _correlation(points)
        share = torch.tensor(weights, dtype=torch.float64)[points.owner]
        parents = [(points.owner == p).nonzero()[:, 0] for p in sorted(set(points.owner.tolist()))]
        return align(similarity, share, parents, slots, generator)

    return solve_hard(stats, target, weights, labeller, torch.tensor(weights, dtype=torch.float64)[owners(stats)])


def check_space(widths: tuple[int, ...], target: int, weights: tuple[float, ...], metric: str = "inner") -> None:
    """Raise :class:`MethodError` for a target of another width than the widest parent with weight has, and for an
    unknown metric."""
    if metric not in ("inner", "correlation"):
        raise MethodError(f"metric of rebasin must be 'inner' or 'correlation'. Got {metric!r}")
    widest = max(width for width, weight in zip(widths, weights, strict=True) if weight > 0)
    if widest != target:
        raise MethodError(
            f"permutation matching keeps the widest parent's width {widest}. Got target {target}; choose a method "
            "that changes widths (kmeans, hungarian, zip, transplant)"
        )


def _correlation(points: Points) -> Tensor:
    covariance = centred(points.gram, points.mean)
    scale = covariance.diagonal().sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    return covariance / (scale[:, None] * scale[None, :])


def align(similarity: Tensor, share: Tensor, parents: list[Tensor], slots: int, generator: torch.Generator) -> Tensor:
    """The slot of every neuron. ``similarity`` is ``N x N``, ``share`` the weight of each neuron's parent, ``parents``
    the neurons of each parent. The widest parent starts and so every slot is taken."""
    order = sorted(parents, key=len, reverse=True)
    labels = torch.full((len(share),), -1)
    labels[order[0]] = torch.arange(len(order[0]))
    for members in order[1:]:
        labels[members] = _assign(similarity, share, labels, members, slots)[0]
    if len(parents) == 2:
        return labels
    for _ in range(MAX_SWEEPS):
        moved = False
        for turn in torch.randperm(len(parents), generator=generator).tolist():
            moved |= _realign(similarity, share, labels, parents[turn], slots)
        if not moved:
            break
    return labels


def _realign(similarity: Tensor, share: Tensor, labels: Tensor, members: Tensor, slots: int) -> bool:
    """Assign one parent anew, in place, if that brings anything; a slot may not lose its only neuron."""
    before = labels[members].clone()
    labels[members] = -1
    others = torch.zeros(slots, dtype=torch.bool)
    others[labels[labels >= 0]] = True
    if not bool(others.all()):  # only this parent is wide enough to fill every slot: the others move instead
        labels[members] = before
        return False
    new, gain = _assign(similarity, share, labels, members, slots)
    old = gain[torch.arange(len(members)), before].sum()
    best = gain[torch.arange(len(members)), new].sum()
    better = bool(best > old + 1e-12 * gain.abs().sum())
    labels[members] = new if better else before
    return better


def _assign(similarity: Tensor, share: Tensor, labels: Tensor, members: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """The best slots of ``members`` beside the neurons that have one, and the gain matrix (members x slots)."""
    placed = (labels >= 0).nonzero()[:, 0]
    block = share[placed, None] * similarity[placed][:, members]
    gain = torch.zeros(slots, len(members), dtype=torch.float64).index_add_(0, labels[placed], block).T
    return assign(-gain), gain
