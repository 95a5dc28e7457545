"""Read neurons from all fused ones: unmerge matrices by least squares instead of from the groups.

A grouping says in which fused neuron each parent's neuron is found again. Better it is predicted from all of them: with
``a`` the parents' activations, ``G`` their Gram matrix, ``M`` the merge matrices side by side, the fused activations
are ``t = M a``, and

    U = argmin sum ||a - U t||^2 + r ||U - U_0||^2  =  U_0 + (G M' - U_0 M G M') (M G M' + r I)^-1

with ``U_0`` what the groups say. It costs one solve per space and no pass over the data. What the parents' next weights
make of the neurons is then as close to the parents' own as the fused neurons allow; where ``a = U_0 t`` already,
nothing changes. The pull towards ``U_0`` makes directions that the data do not show stay as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from fxfuse.matrices import multiply
from fxfuse.types import Grouping, Space, SpaceStatistics

RIDGE = 1e-2
"""``r`` in parts of the fused neurons' mean energy."""


def regressed(
    spaces: Sequence[Space], groupings: Mapping[int, Grouping], statistics: Mapping[int, SpaceStatistics]
) -> dict[int, Grouping]:
    """The groupings with unmerge matrices by least squares; spaces that have others inside, lie inside one, or were
    observed nowhere stay as they are."""
    owners = {space.outer for space in spaces}
    alone = {space.id for space in spaces if space.outer is None and space.id not in owners}
    return {
        number: regressed_grouping(grouping, statistics[number])
        if number in alone and number in statistics
        else grouping
        for number, grouping in groupings.items()
    }


def regressed_grouping(grouping: Grouping, stats: SpaceStatistics) -> Grouping:
    """One grouping of an ordinary space with unmerge matrices by least squares (module docstring's formula)."""
    gram = stats.gram
    merge, unmerge = torch.cat(grouping.merge, 1), torch.cat(grouping.unmerge)
    cross = multiply(merge, gram, 0).T  # the Gram matrix is symmetric, and its rows lie together
    own = multiply(merge, cross, 0)
    ridge = RIDGE * float(own.diagonal().mean())
    if ridge <= 0:
        return grouping
    missed = cross - multiply(unmerge, own, 0)
    own.diagonal().add_(ridge)
    found = torch.cholesky_solve(missed.T, torch.linalg.cholesky(own)).T.add_(unmerge)
    return replace(grouping, unmerge=tuple(part.contiguous() for part in torch.split(found, list(stats.widths))))
