"""Neuron i with neuron i: the identity, as plain weight averaging assumes.

``merge[p] = w_p I`` and ``unmerge[p] = I``, so ``sum_p merge[p] W_p unmerge[p] = sum_p w_p W_p``.
"""

import torch

from fxfuse.errors import MethodError
from fxfuse.passes.solvers.groups import check, hard_error, masses
from fxfuse.passes.solvers.threads import one_thread
from fxfuse.types import Grouping, SpaceStatistics


@one_thread()
def solve(
    stats: SpaceStatistics,
    target: int,
    *,
    weights: tuple[float, ...],
    generator: torch.Generator,  # noqa: ARG001  (one signature for all solvers)
) -> Grouping:
    """Pair neurons by their index. Raises :class:`MethodError` unless every parent has the target width."""
    check(stats, target, weights)
    if set(stats.widths) != {target}:
        raise MethodError(
            f"averaging pairs neurons by index, so all parents of space {stats.space} must have the target width "
            f"{target}. Got {list(stats.widths)}; choose a method that matches neurons (kmeans, hungarian, ot)"
        )
    parents = len(weights)
    share = torch.tensor(weights, dtype=torch.float64).repeat_interleave(target)
    gram = stats.gram
    error = hard_error(gram, torch.arange(target).repeat(parents), share, masses(stats, weights))
    return identity(stats.space, target, weights, error)


def identity(space: int, width: int, weights: tuple[float, ...], error: float | None = None) -> Grouping:
    """The grouping that :func:`solve` returns, for a space of which nothing was observed."""
    eye = torch.eye(width, dtype=torch.float64)
    return Grouping(space, tuple(weight * eye for weight in weights), tuple(eye.clone() for _ in weights), error)
