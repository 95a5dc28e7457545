"""Transport: POT's plans, Sinkhorn's limit, exact masses, OTFusion's formula."""

import warnings
from itertools import pairwise

import pytest
import torch
from solver_cases import check_shapes, fused, generator, linear_net, neurons, rewrite_net, run_net, statistics

from fxfuse.errors import MethodError
from fxfuse.passes.solvers.ot import exact_plan, sinkhorn_plan, solve

with warnings.catch_warnings():  # its docstrings hold invalid escapes
    warnings.simplefilter("ignore")
    import ot


def uniform(n):
    return torch.full((n,), 1 / n, dtype=torch.float64)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("marginals", ["uniform", "importance"])
def test_plans_equal_pot(metric, squared, marginals):
    parents = [neurons(9, 0), neurons(6, 1)]
    scores = [torch.rand(len(a), generator=generator(4), dtype=torch.float64) + 0.1 for a in parents]
    stats = statistics(parents, (0.5, 0.5), scores)
    grouping = solve(
        stats, 6, weights=(0.5, 0.5), generator=generator(), metric=metric, squared=squared, marginals=marginals
    )
    rows = [a / a.norm(dim=1, keepdim=True) for a in parents] if metric == "cosine" else parents
    cost = torch.cdist(*rows)
    cost = cost.pow(2) if squared else cost
    mu, nu = (s / s.sum() for s in scores) if marginals == "importance" else (uniform(9), uniform(6))
    plan = torch.from_numpy(ot.emd(mu.numpy(), nu.numpy(), cost.numpy()))
    torch.testing.assert_close(grouping.merge[0], 0.5 * (plan / nu).T, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(grouping.unmerge[0], plan / mu[:, None], rtol=1e-9, atol=1e-12)
    assert torch.equal(grouping.unmerge[1], torch.eye(6, dtype=torch.float64))


def test_sinkhorn_tends_to_the_exact_plan():
    mu = torch.rand(12, generator=generator(0), dtype=torch.float64) + 0.1
    mu, nu = mu / mu.sum(), uniform(8)
    cost = torch.cdist(neurons(12, 0), neurons(8, 1))
    exact = float((exact_plan(cost, mu, nu) * cost).sum())
    gaps = []
    for regularisation in (1.0, 0.1, 0.01, 0.001):
        plan = sinkhorn_plan(cost, mu, nu, regularisation)
        torch.testing.assert_close(plan.sum(1), mu, rtol=0, atol=1e-12)
        torch.testing.assert_close(plan.sum(0), nu, rtol=0, atol=1e-12)
        gaps.append(float((plan * cost).sum()) / exact - 1)
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(gaps))
    assert gaps[-1] >= -1e-12
    assert gaps[-1] < 1e-4


def test_sinkhorn_equals_pot_at_the_same_entropy():
    cost, mu, nu = torch.cdist(neurons(7, 0), neurons(5, 1)), uniform(7), uniform(5)
    peer = ot.sinkhorn(mu.numpy(), nu.numpy(), cost.numpy(), 0.05 * float(cost.mean()), stopThr=1e-13)
    torch.testing.assert_close(sinkhorn_plan(cost, mu, nu, 0.05), torch.from_numpy(peer), rtol=0, atol=1e-6)


@pytest.mark.parametrize("regularisation", [1e3, 1.0, 1e-3, 1e-6, 1e-12])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_sinkhorn_is_never_nan(regularisation, scale):
    cost = scale * torch.cdist(neurons(6, 0), neurons(6, 1)).pow(2)
    cost[0] = 0.0
    plan = sinkhorn_plan(cost, uniform(6), uniform(6), regularisation)
    assert bool(torch.isfinite(plan).all())
    torch.testing.assert_close(plan.sum(0), uniform(6), rtol=0, atol=1e-12)
    assert bool(torch.isfinite(sinkhorn_plan(torch.zeros(6, 6).double(), uniform(6), uniform(6), 0.1)).all())


def test_permutations_reproduce_the_papers_formula():
    """``W~ = T' W T_prev``, layer after layer, then the mean with the reference."""
    nets = [linear_net((6, 8, 7, 3), seed) for seed in range(2)]
    x, weights = neurons(6, 5), (0.5, 0.5)
    hidden = [run_net(net, x)[1] for net in nets]
    groupings = [
        solve(statistics([h[k] for h in hidden], weights), n, weights=weights, generator=generator(), reference=0)
        for k, n in enumerate((8, 7))
    ]
    previous, expected = torch.eye(6, dtype=torch.float64), []
    for layer in range(3):
        aligned = nets[1][layer] @ previous
        if layer < 2:
            cost = torch.cdist(hidden[1][layer], hidden[0][layer])
            n = len(cost)
            T = torch.from_numpy(ot.emd(uniform(n).numpy(), uniform(n).numpy(), cost.numpy())) * n
            aligned, previous = T.T @ aligned, T
        expected.append((nets[0][layer] + aligned) / 2)
    for ours, theirs in zip(rewrite_net(nets, groupings, weights), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"squared": True}, {"metric": "cosine"}, {"regularisation": 1e-3}])
def test_barycentre_of_permuted_copies_is_the_network(options):
    a = neurons(8, 0)
    parents = [a, a[torch.randperm(8, generator=generator(1))], a[torch.randperm(8, generator=generator(2))]]
    weights = (0.5, 0.25, 0.25)
    grouping = solve(
        statistics(parents, weights), 8, weights=weights, generator=generator(), reference="barycentre", **options
    )
    check_shapes(grouping, (8, 8, 8), 8)
    assert grouping.error == pytest.approx(0, abs=1e-6)
    distance = torch.cdist(fused(grouping, parents), a)
    assert float(distance.min(1).values.max()) < 1e-3


def test_three_parents_go_to_the_chosen_reference():
    parents = [neurons(n, n) for n in (5, 7, 6)]
    weights = (0.2, 0.5, 0.3)
    grouping = solve(statistics(parents, weights), 6, weights=weights, generator=generator(), reference=2)
    check_shapes(grouping, (5, 7, 6), 6)
    for weight, merge in zip(weights, grouping.merge, strict=True):
        torch.testing.assert_close(merge.sum(1), torch.full((6,), weight, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": 0}, "must be a parent of the target width 6"),
        ({"reference": 9}, "must be a parent of the target width 6"),
        ({"metric": "manhattan"}, "metric of ot must be"),
        ({"marginals": "even"}, "marginals of ot must be"),
        ({"regularisation": 0.0}, "regularisation of ot must be positive"),
        ({"regularisation": float("nan")}, "regularisation of ot must be positive"),
    ],
)
def test_bad_options_are_named(options, message):
    stats = statistics([neurons(5, 0), neurons(6, 1)], (0.5, 0.5))
    with pytest.raises(MethodError, match=message):
        solve(stats, 6, weights=(0.5, 0.5), generator=generator(), **options)


@pytest.mark.parametrize("n", [3, 40, 600])
def test_equal_masses_make_the_plan_a_permutation_as_cheap_as_the_network_simplex(n: int) -> None:
    x, y = torch.randn(2, n, 5, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    cost = torch.cdist(x, y)
    mass = torch.full((n,), 1 / n, dtype=torch.float64)
    plan = exact_plan(cost, mass, mass)
    assert torch.equal((plan > 0).sum(0), torch.ones(n, dtype=torch.long))
    assert torch.equal((plan > 0).sum(1), torch.ones(n, dtype=torch.long))
    best = float((torch.from_numpy(ot.emd(mass.numpy(), mass.numpy(), cost.numpy())) * cost).sum())
    assert float((plan * cost).sum()) == pytest.approx(best, rel=1e-9)
