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
    check_space(stats.widths, target, weights)
    parents = len(weights)
    share = torch.tensor(weights, dtype=torch.float64).repeat_interleave(target)
    gram = stats.gram
    error = hard_error(gram, torch.arange(target).repeat(parents), share, masses(stats, weights))
    return identity(stats.space, target, weights, error)


def check_space(widths: tuple[int, ...], target: int, weights: tuple[float, ...]) -> None:  # noqa: ARG001
    """Raise :class:`MethodError` for widths that averaging cannot pair, whatever the statistics."""
    if set(widths) != {target}:
        raise MethodError(
            f"averaging pairs neurons by index, so all parents must have the target width {target}. Got "
            f"{list(widths)}; choose a method that matches neurons (kmeans, hungarian, ot)"
        )


def identity(space: int, width: int, weights: tuple[float, ...], error: float | None = None) -> Grouping:
    """The grouping that :func:`solve` returns, for a space of which nothing was observed."""
    eye = torch.eye(width, dtype=torch.float64)
    return Grouping(space, tuple(weight * eye for weight in weights), tuple(eye.clone() for _ in weights), error)
