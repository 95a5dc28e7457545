"""Averaging pairs by index."""

import pytest
import torch
from solver_cases import brute_error, generator, neurons, statistics

from fxfuse.errors import MethodError
from fxfuse.passes.solvers.average import solve


def test_is_the_weighted_identity():
    parents = [neurons(5, seed) for seed in range(3)]
    weights = (0.5, 0.2, 0.3)
    stats = statistics(parents, weights)
    grouping = solve(stats, 5, weights=weights, generator=generator())
    eye = torch.eye(5, dtype=torch.float64)
    for weight, merge, unmerge in zip(weights, grouping.merge, grouping.unmerge, strict=True):
        assert torch.equal(merge, weight * eye)
        assert torch.equal(unmerge, eye)
    assert grouping.error == pytest.approx(brute_error(grouping, parents, stats.importance), rel=1e-9)


@pytest.mark.parametrize(("widths", "target"), [((5, 4), 5), ((5, 5), 4)])
def test_needs_one_width(widths, target):
    stats = statistics([neurons(width, 0) for width in widths], (0.5, 0.5))
    with pytest.raises(MethodError, match=r"must have the target width .* choose a method that matches"):
        solve(stats, target, weights=(0.5, 0.5), generator=generator())
