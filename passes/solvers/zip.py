"""Greedy pairing by correlation, within and across parents (ZipIt; Stoica et al., 2024).

Start with every neuron alone. Join the two groups whose means correlate most, weigh the means by importance, go on
until ``target`` groups are left. Correlation is centred, so neither the scale of a neuron nor its bias counts;
neurons that do not vary agree with each other and with nothing else. The cost is ``O(N^2)`` in practice: see
:mod:`fxfuse.passes.solvers.agglomerate`.
"""

import torch
from torch import Tensor

from fxfuse.passes.solvers.agglomerate import agglomerate, decorrelation
from fxfuse.passes.solvers.groups import Points, centred, solve_hard
from fxfuse.passes.solvers.threads import one_thread
from fxfuse.types import Grouping, SpaceStatistics


@one_thread()
def solve(
    stats: SpaceStatistics,
    target: int,
    *,
    weights: tuple[float, ...],
    generator: torch.Generator,  # noqa: ARG001  (deterministic; one signature for all solvers)
    within: bool = False,
) -> Grouping:
    """Join the most correlated neurons until ``target`` groups are left; any number of parents, any widths.

    ``within=False`` joins neurons of one parent only when no pair across parents is left, which without a fit
    afterwards is much the better; ``within=True`` takes the most correlated pair wherever it is.
    """

    def labeller(points: Points, groups: int) -> Tensor:
        covariance = centred(points.gram, points.mean)
        start = torch.arange(len(points.mass))
        return agglomerate(covariance, points.mass, start, groups, decorrelation, None if within else points.owner)

    return solve_hard(stats, target, weights, labeller)
