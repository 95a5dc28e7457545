"""Assignment: scipy's optimum for two parents, a brute-force optimum where widths differ, a fixed point for more."""

from itertools import permutations, product

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from solver_cases import generator, neurons, statistics

from fxfuse.passes.solvers.groups import Points, masses, owners, scatter
from fxfuse.passes.solvers.hungarian import matched_labels, solve
from fxfuse.passes.solvers.threads import one_thread


@pytest.fixture(autouse=True)
def _single():
    with one_thread():
        yield


def points_of(stats, weights):
    return Points(stats.gram, stats.mean, masses(stats, weights), owners(stats))


def case(widths, seed=0):
    parents = [neurons(width, seed + p) for p, width in enumerate(widths)]
    weights = tuple(1 / len(widths) for _ in widths)
    random = generator(seed)
    scores = [torch.rand(width, generator=random, dtype=torch.float64) + 0.01 for width in widths]
    stats = statistics(parents, weights, scores)
    return parents, stats, weights


@pytest.mark.parametrize("seed", range(3))
def test_two_parents_equal_scipy_on_the_documented_cost(seed):
    parents, stats, weights = case((20, 20), seed)
    a, b, s = *parents, stats.importance
    harmonic = s[:20, None] * s[None, 20:] / (s[:20, None] + s[None, 20:])
    cost = (harmonic * torch.cdist(a, b).pow(2)).numpy()
    rows, columns = linear_sum_assignment(cost)
    grouping = solve(stats, 20, weights=weights, generator=generator())
    pairs = (grouping.unmerge[0] @ grouping.unmerge[1].T).nonzero()
    assert pairs.tolist() == [[r, c] for r, c in zip(rows.tolist(), columns.tolist(), strict=True)]
    energy = float((s * torch.cat(parents).pow(2).sum(1)).sum())
    assert grouping.error == pytest.approx(cost[rows, columns].sum() / energy, rel=1e-9)
    merge = grouping.merge[0].sum(1)  # a pair's mean is weighted by importance
    torch.testing.assert_close(merge, s[:20] / (s[:20] + s[20:][torch.from_numpy(columns)]))


@pytest.mark.parametrize(("widths", "target"), [((4, 4), 6), ((3, 4), 4), ((4, 3), 5), ((3, 3), 3)])
def test_two_parents_are_optimal_at_any_wider_target(widths, target):
    """Against all ways to give each parent's neurons different groups so that no group stays empty."""
    _, stats, weights = case(widths, 5)
    points = points_of(stats, weights)
    best = min(
        scatter(points, torch.tensor([*range(widths[0]), *second]), target)
        for second in permutations(range(target), widths[1])
        if len({*range(widths[0]), *second}) == target
    )
    labels = matched_labels(points, target)
    assert scatter(points, labels, target) == pytest.approx(best, rel=1e-9)


def test_more_parents_reach_a_fixed_point_and_hold_one_neuron_of_each():
    _, stats, weights = case((6, 5, 4, 6), 3)
    points = points_of(stats, weights)
    for target in (6, 8):
        labels = matched_labels(points, target)
        for p in range(4):
            own = labels[points.owner == p]
            assert len(own.unique()) == len(own)
        value = scatter(points, labels, target)
        assert value <= scatter(points, matched_labels(points, target, sweeps=0), target) + 1e-12
        for p in range(4):  # no exchange of two of a parent's neurons brings anything
            members = (points.owner == p).nonzero()[:, 0].tolist()
            for i, j in product(members, members):
                other = labels.clone()
                other[i], other[j] = labels[j], labels[i]
                assert scatter(points, other, target) >= value - 1e-12


def test_three_permuted_noisy_copies_find_each_other():
    random = generator(1)
    base = neurons(30, 0)
    orders = [torch.randperm(30, generator=random) for _ in range(3)]
    parents = [base[o] + 0.05 * torch.randn(30, 60, generator=random, dtype=torch.float64) for o in orders]
    grouping = solve(statistics(parents, (1 / 3,) * 3), 30, weights=(1 / 3,) * 3, generator=generator())
    for unmerge, order in zip(grouping.unmerge, orders, strict=True):
        group = unmerge.argmax(1)
        first = grouping.unmerge[0].argmax(1)
        expected = torch.empty(30, dtype=torch.long)
        expected[orders[0]] = first
        assert torch.equal(group, expected[order])


def test_a_narrower_target_joins_matched_groups():
    _, stats, weights = case((8, 8), 2)
    points = points_of(stats, weights)
    labels = matched_labels(points, 5)
    wide = matched_labels(points, 8)
    for g in range(8):
        assert len(labels[wide == g].unique()) == 1
    assert sorted(labels.unique().tolist()) == list(range(5))
    assert np.isfinite(scatter(points, labels, 5))
