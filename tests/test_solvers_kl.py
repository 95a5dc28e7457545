"""Assignment of posteriors: scipy's optimum for two parents, a fixed point for more."""

from dataclasses import replace

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from solver_cases import check_shapes, generator, neurons, statistics

from fxfuse.errors import MethodError
from fxfuse.passes.solvers.kl import solve


def divergent(parents, weights, seed=0):
    stats = statistics(parents, weights)
    n = len(stats.gram)
    cost = torch.rand(n, n, generator=generator(seed), dtype=torch.float64)
    return replace(stats, divergence=(cost + cost.T) / 2)


def test_two_parents_equal_scipy():
    stats = divergent([neurons(9, 0), neurons(9, 1)], (0.6, 0.4))
    grouping = solve(stats, 9, weights=(0.6, 0.4), generator=generator())
    check_shapes(grouping, (9, 9), 9)
    _, columns = linear_sum_assignment(stats.divergence[:9, 9:].numpy())
    assert torch.equal(grouping.unmerge[1].argmax(1)[torch.from_numpy(columns)], torch.arange(9))


def test_no_parent_of_three_wants_to_move():
    weights = (0.5, 0.3, 0.2)
    stats = divergent([neurons(7, s) for s in range(3)], weights)
    grouping = solve(stats, 7, weights=weights, generator=generator())
    slots = [u.argmax(1) for u in grouping.unmerge]
    cost = stats.divergence
    for p, q, r in ((1, 0, 2), (2, 0, 1)):
        total = torch.zeros(7, 7, dtype=torch.float64)
        for other in (q, r):
            block = cost[7 * p : 7 * p + 7, 7 * other : 7 * other + 7]
            total[:, slots[other]] += weights[other] * block
        rows, columns = linear_sum_assignment(total.numpy())
        assert total[torch.arange(7), slots[p]].sum().item() == pytest.approx(total[rows, columns].sum().item())


def test_it_keeps_the_widest_width():
    stats = divergent([neurons(5, 0), neurons(7, 1)], (0.5, 0.5))
    check_shapes(solve(stats, 7, weights=(0.5, 0.5), generator=generator()), (5, 7), 7)
    with pytest.raises(MethodError, match="widest parent's width 7"):
        solve(stats, 6, weights=(0.5, 0.5), generator=generator())
