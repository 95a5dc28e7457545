"""Permutation matching: scipy's optimum for two parents, a monotone fixed point for more, padding for widths."""

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from solver_cases import check_shapes, fused, generator, neurons, same_rows, statistics

from fxfuse.errors import MethodError
from fxfuse.passes.solvers.rebasin import solve


@pytest.mark.parametrize("metric", ["inner", "correlation"])
def test_two_parents_equal_scipy(metric):
    first, second = neurons(15, 0), neurons(15, 1)
    stats = statistics([first, second], (0.6, 0.4))
    grouping = solve(stats, 15, weights=(0.6, 0.4), generator=generator(), metric=metric)
    both = torch.corrcoef(torch.cat([first, second])) if metric == "correlation" else stats.gram
    _, columns = linear_sum_assignment(both[:15, 15:].numpy(), maximize=True)
    assert torch.equal(grouping.unmerge[0], torch.eye(15, dtype=torch.float64))
    permutation = torch.eye(15, dtype=torch.float64)[torch.from_numpy(columns)]
    assert torch.equal(grouping.unmerge[1], permutation.T)
    torch.testing.assert_close(grouping.merge[1], 0.4 * permutation, rtol=1e-12, atol=0)


def test_importance_has_no_say():
    parents = [neurons(6, 0), neurons(6, 1)]
    scores = [torch.rand(6, generator=generator(p), dtype=torch.float64) for p in range(2)]
    plain = solve(statistics(parents, (0.5, 0.5)), 6, weights=(0.5, 0.5), generator=generator())
    scored = solve(statistics(parents, (0.5, 0.5), scores), 6, weights=(0.5, 0.5), generator=generator())
    assert all(torch.equal(a, b) for a, b in zip(plain.merge, scored.merge, strict=True))


def test_no_parent_of_four_wants_to_move():
    parents = [neurons(10, seed) for seed in range(4)]
    weights = (0.4, 0.3, 0.2, 0.1)
    grouping = solve(statistics(parents, weights), 10, weights=weights, generator=generator())
    aligned = [u.T @ a for u, a in zip(grouping.unmerge, parents, strict=True)]
    for p in range(4):
        others = sum(weights[q] * aligned[q] for q in range(4) if q != p)
        gain = aligned[p] @ others.T
        rows, columns = linear_sum_assignment(gain.numpy(), maximize=True)
        assert gain.trace().item() == pytest.approx(gain[rows, columns].sum().item(), rel=1e-9)


def test_a_narrower_parent_leaves_slots_empty():
    wide = neurons(7, 0)
    narrow = wide[[5, 2, 3]]
    grouping = solve(statistics([narrow, wide], (0.5, 0.5)), 7, weights=(0.5, 0.5), generator=generator())
    check_shapes(grouping, (3, 7), 7)
    assert same_rows(fused(grouping, [narrow, wide]), wide)
    assert torch.equal(grouping.unmerge[0].argmax(1), grouping.unmerge[1].argmax(1)[[5, 2, 3]])


@pytest.mark.parametrize(("target", "options"), [(6, {}), (8, {}), (7, {"metric": "cosine"})])
def test_what_it_cannot_do_is_said(target, options):
    stats = statistics([neurons(7, 0), neurons(5, 1)], (0.5, 0.5))
    with pytest.raises(MethodError, match=r"widest parent's width 7|metric of rebasin must be"):
        solve(stats, target, weights=(0.5, 0.5), generator=generator(), **options)
