"""The fast agglomeration joins what a naive one joins, and does so at size in seconds."""

import time

import pytest
import torch
from solver_cases import neurons

from fxfuse.passes.solvers.agglomerate import agglomerate, decorrelation, ward
from fxfuse.passes.solvers.groups import centred, renumber
from fxfuse.passes.solvers.threads import one_thread


@pytest.fixture(autouse=True)
def _single():
    with one_thread():
        yield


def naive(a, mass, groups, cost):
    members = [[i] for i in range(len(a))]
    while len(members) > groups:
        sums = [mass[m].sum() for m in members]
        means = [(mass[m, None] * a[m]).sum(0) / s for m, s in zip(members, sums, strict=True)]
        pairs = [(x, y) for x in range(len(members)) for y in range(x)]
        x, y = min(pairs, key=lambda pair: float(cost(*(v[k] for k in pair for v in (means, sums)))))
        members[y] += members.pop(x)
    labels = torch.zeros(len(a), dtype=torch.long)
    for g, m in enumerate(members):
        labels[m] = g
    return renumber(labels)


def naive_ward(t, s, u, r):
    return s * r / (s + r) * (t - u).pow(2).sum()


def naive_decorrelation(t, s, u, r):  # noqa: ARG001
    return 1 - torch.corrcoef(torch.stack([t, u]))[0, 1]


@pytest.mark.parametrize("groups", [1, 4, 9, 12])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_naive_algorithm(groups, seed):
    a = neurons(12, seed, rows=30)
    mass = torch.rand(12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    gram, start = a @ a.T / 30, torch.arange(12)
    found = agglomerate(gram, mass, start, groups, ward)
    assert torch.equal(renumber(found), naive(a, mass, groups, naive_ward))
    found = agglomerate(centred(gram, a.mean(1)), mass, start, groups, decorrelation)
    assert torch.equal(renumber(found), naive(a, mass, groups, naive_decorrelation))


def test_starts_from_groups_and_keeps_classes_apart():
    a = neurons(8, 3)
    gram, mass = a @ a.T, torch.ones(8, dtype=torch.float64)
    start = torch.tensor([0, 0, 1, 2, 3, 4, 5, 5])
    found = agglomerate(gram, mass, start, 3, ward)
    assert found[0] == found[1]
    assert found[6] == found[7]
    assert sorted(found.unique().tolist()) == [0, 1, 2]
    classes = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    apart = agglomerate(gram, mass, torch.arange(8), 4, ward, classes)
    assert all(sorted(classes[apart == g].tolist()) == [0, 1] for g in range(4))
    further = agglomerate(gram, mass, torch.arange(8), 3, ward, classes)  # nothing else is left
    assert all(len(further[apart == g].unique()) == 1 for g in range(4))


def test_two_thousand_neurons_take_a_moment():
    a = neurons(2000, 0, rows=500)
    began = time.process_time()
    found = agglomerate(a @ a.T, torch.ones(2000, dtype=torch.float64), torch.arange(2000), 1000, ward)
    assert time.process_time() - began < 10  # 0.6 s where measured; the bound only catches a cubic algorithm
    assert int(found.max()) == 999
