"""Reads by regression: scikit-learn's ridge, copies unchanged, an error that never grows, spaces left alone."""

from dataclasses import replace

import torch
from sklearn.linear_model import Ridge
from solver_cases import generator, neurons, statistics

from fxfuse.passes.reads import RIDGE, regressed, regressed_grouping
from fxfuse.passes.solvers import SOLVERS
from fxfuse.types import Space

SHARES = (0.5, 0.5)


def grouped(parents, target, name="kmeans"):
    stats = statistics(parents, SHARES)
    return stats, SOLVERS[name](stats, target, weights=SHARES, generator=generator())


def test_it_is_ridge_regression_towards_the_groups():
    parents = [neurons(9, 0), neurons(7, 1)]
    stats, grouping = grouped(parents, 8)
    own = torch.cat(parents)
    fused = torch.cat(grouping.merge, 1) @ own
    strength = RIDGE * float(fused.square().mean(1).mean()) * own.shape[1]
    before = torch.cat(grouping.unmerge)
    peer = Ridge(alpha=strength, fit_intercept=False).fit(fused.T.numpy(), (own - before @ fused).T.numpy())
    found = torch.cat(regressed_grouping(grouping, stats).unmerge)
    torch.testing.assert_close(found, before + torch.from_numpy(peer.coef_), rtol=1e-7, atol=1e-9)


def test_what_is_read_well_already_stays():
    a = neurons(8, 0)
    stats, grouping = grouped([a, a[torch.randperm(8, generator=generator(1))]], 8)
    for old, new in zip(grouping.unmerge, regressed_grouping(grouping, stats).unmerge, strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-9)


def test_reading_gets_no_worse():
    for name in ("kmeans", "transplant", "zip"):
        parents = [neurons(10, 2), neurons(10, 3)]
        stats, grouping = grouped(parents, 10, name)
        own = torch.cat(parents)
        fused = torch.cat(grouping.merge, 1) @ own
        errors = [
            float((own - torch.cat(g.unmerge) @ fused).square().sum())
            for g in (grouping, regressed_grouping(grouping, stats))
        ]
        assert errors[1] < errors[0]


def test_silent_neurons_and_spaces_of_blocks_are_left_alone():
    silent = [torch.zeros(4, 60).double()] * 2
    stats, grouping = grouped(silent, 4)
    assert regressed_grouping(grouping, stats) is grouping
    stats, grouping = grouped([neurons(4, 0), neurons(4, 1)], 4)
    spaces = (Space(0, 4, "heads"), Space(1, 4, "width", outer=0), Space(2, 4, "unseen"), Space(3, 4, "plain"))
    groupings = {space.id: replace(grouping, space=space.id) for space in spaces}
    out = regressed(spaces, groupings, {0: stats, 1: stats, 3: stats})
    assert [out[s] is groupings[s] for s in range(4)] == [True, True, True, False]
