"""k-means on the Gram matrix equals scikit-learn's on the activations, from the same start."""

import time

import pytest
import torch
from sklearn.cluster import KMeans
from solver_cases import generator, neurons, statistics

from fxfuse.errors import MethodError
from fxfuse.passes.solvers.groups import Points, masses, owners, scatter
from fxfuse.passes.solvers.hungarian import matched_labels
from fxfuse.passes.solvers.kmeans import lloyd, plus_plus, solve
from fxfuse.passes.solvers.threads import one_thread


@pytest.fixture(autouse=True)
def _single():
    with one_thread():
        yield


def case(widths, seed=0, rows=40):
    parents = [neurons(width, seed + p, rows) for p, width in enumerate(widths)]
    weights = tuple(1 / len(widths) for _ in widths)
    random = generator(seed)
    scores = [torch.rand(width, generator=random, dtype=torch.float64).pow(3) + 0.01 for width in widths]
    stats = statistics(parents, weights, scores)
    return torch.cat(parents), stats, Points(stats.gram, stats.mean, masses(stats, weights), owners(stats)), weights


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("groups", [3, 10, 30])
def test_equals_scikit_learn_from_the_same_start(seed, groups):
    a, _, points, _ = case((30, 25, 20), seed)
    start = plus_plus(points, groups, generator(seed))
    labels = lloyd(points, start, groups)
    sums = torch.zeros(groups, a.shape[1], dtype=torch.float64).index_add_(0, start, points.mass[:, None] * a)
    mass = torch.zeros(groups, dtype=torch.float64).index_add_(0, start, points.mass)
    peer = KMeans(groups, init=(sums / mass[:, None]).numpy(), n_init=1, tol=0, algorithm="lloyd")
    peer.fit(a.numpy(), sample_weight=points.mass.numpy())
    ours = scatter(points, labels, groups) * a.shape[1]
    assert ours == pytest.approx(peer.inertia_, rel=1e-8)
    assert torch.equal(labels, torch.from_numpy(peer.labels_).long())


def test_a_partition_that_is_a_fixed_point_stays():
    _, _, points, _ = case((20, 20))
    labels = lloyd(points, plus_plus(points, 12, generator()), 12)
    assert torch.equal(lloyd(points, labels, 12), labels)


def test_is_never_worse_than_the_assignment_and_more_restarts_never_hurt():
    _, stats, points, weights = case((25, 25), 3)
    energy = float((points.mass * points.gram.diagonal()).sum())
    assigned = scatter(points, matched_labels(points, 20), 20) / energy
    errors = [solve(stats, 20, weights=weights, generator=generator(), restarts=r).error for r in (0, 1, 4)]
    assert errors[0] <= assigned + 1e-12
    assert errors[1] <= errors[0] + 1e-12
    assert errors[2] <= errors[1] + 1e-12


def test_plus_plus_gives_every_group_a_member_even_among_copies():
    a = neurons(5, 0).repeat(4, 1)
    points = Points(a @ a.T, a.mean(1), torch.full((20,), 0.05, dtype=torch.float64), torch.zeros(20))
    for groups in (1, 5, 12, 20):
        labels = plus_plus(points, groups, generator(groups))
        assert sorted(labels.unique().tolist()) == list(range(groups))
        labels = lloyd(points, labels, groups)
        assert sorted(labels.unique().tolist()) == list(range(groups))
        if groups >= 5:
            assert scatter(points, labels, groups) == pytest.approx(0, abs=1e-9)


def test_an_emptied_group_takes_the_worst_served_neuron():
    a = torch.tensor([[0.0], [0.1], [5.0], [5.1], [20.0]], dtype=torch.float64)
    points = Points(a @ a.T, a[:, 0], torch.ones(5, dtype=torch.float64), torch.zeros(5))
    # the means of {0, 20} and {5.1} lie so that group 0 loses both its neurons
    labels = lloyd(points, torch.tensor([1, 1, 1, 2, 0]), 3)
    assert sorted(torch.bincount(labels).tolist()) == [1, 2, 2]
    labels = lloyd(points, torch.tensor([0, 2, 2, 1, 0]), 3)
    assert sorted(labels.unique().tolist()) == [0, 1, 2]


def test_a_thousand_neurons_take_a_moment():
    _, stats, _, weights = case((500, 500), rows=400)
    began = time.process_time()
    grouping = solve(stats, 256, weights=weights, generator=generator())
    assert time.process_time() - began < 3  # 0.2 s where measured
    assert grouping.merge[0].shape == (256, 500)


def test_fewer_than_no_restarts_are_refused():
    _, stats, _, weights = case((4, 4))
    with pytest.raises(MethodError, match=r"restarts of kmeans must be at least 0\. Got -1"):
        solve(stats, 4, weights=weights, generator=generator(0), restarts=-1)
