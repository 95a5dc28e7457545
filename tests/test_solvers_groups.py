"""Sums over groups equal what they are on materialised activations; assembling keeps function and error."""

import pytest
import torch
from solver_cases import brute_error, neurons, statistics

from fxfuse.passes.solvers.groups import (
    LEAST_SHARE,
    Points,
    assemble,
    centred,
    group_sums,
    masses,
    owners,
    renumber,
    scatter,
)
from fxfuse.passes.solvers.threads import one_thread


@pytest.fixture(autouse=True)
def _single():
    with one_thread():
        yield


def case():
    parents = [neurons(5, 0), neurons(4, 1)]
    scores = [torch.rand(len(a), generator=torch.Generator().manual_seed(2), dtype=torch.float64) for a in parents]
    return parents, statistics(parents, (0.7, 0.3), scores)


def test_group_sums_and_scatter_equal_materialised_ones():
    parents, stats = case()
    a, mass, labels = torch.cat(parents), stats.importance, torch.tensor([0, 1, 2, 0, 1, 1, 0, 2, 2])
    rows = a.shape[1]
    total, cross, energy = group_sums(stats.gram, mass, labels, 3)
    sums = torch.stack([(mass[:, None] * a)[labels == g].sum(0) for g in range(3)])
    means = sums / total[:, None]
    torch.testing.assert_close(cross, sums @ a.T / rows)
    torch.testing.assert_close(energy, sums.pow(2).sum(1) / rows)
    expected = float((mass * (a - means[labels]).pow(2).sum(1)).sum() / rows)
    assert scatter(Points(stats.gram, stats.mean, mass, owners(stats)), labels, 3) == pytest.approx(expected, rel=1e-10)


def test_masses_are_zero_exactly_where_a_parent_has_no_weight():
    _, stats = case()
    stats.importance[1] = 0.0
    mass = masses(stats, (0.7, 0.0))
    assert bool((mass[:5] > 0).all())
    assert float(mass[1]) == pytest.approx(LEAST_SHARE * float(stats.importance[:5].mean()))
    assert torch.equal(mass[5:], torch.zeros(4, dtype=torch.float64))
    stats.importance[:5] = 0.0
    torch.testing.assert_close(masses(stats, (0.7, 0.3))[:5], torch.full((5,), 0.14, dtype=torch.float64))


def test_renumber_goes_by_first_members():
    assert renumber(torch.tensor([4, 2, 4, 7, 0, 2])).tolist() == [0, 1, 0, 2, 3, 1]


@pytest.mark.parametrize("target", [3, 4, 7])
def test_assemble_shares_copies_and_states_the_error(target):
    parents, stats = case()
    labels = torch.tensor([0, 1, 2, 0, 1, 1, 0, 2, 2])
    grouping = assemble(stats, labels, stats.importance, target, stats.importance)
    assert grouping.error == pytest.approx(brute_error(grouping, parents, stats.importance), rel=1e-9)
    unmerge = torch.cat(grouping.unmerge)
    torch.testing.assert_close(unmerge.sum(1), torch.ones(9, dtype=torch.float64))
    copies = (unmerge > 0).sum(1)
    assert int(copies.max()) - int(copies.min()) <= 1  # spread evenly


def test_centred_is_the_covariance_with_still_neurons_at_zero():
    a = neurons(4, 0)
    a[2] = 3.7
    covariance = centred(a @ a.T / a.shape[1], a.mean(1))
    torch.testing.assert_close(covariance, torch.cov(a, correction=0), rtol=1e-9, atol=1e-12)
    assert torch.equal(covariance[2], torch.zeros(4, dtype=torch.float64))
