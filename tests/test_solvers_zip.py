"""Greedy pairing by correlation."""

import torch
from solver_cases import generator, neurons, statistics

from fxfuse.passes.solvers.zip import solve


def groups_of(grouping):
    return torch.cat(grouping.unmerge).argmax(1).tolist()


def test_scale_and_bias_of_a_neuron_do_not_matter():
    a = neurons(6, 0)
    order = torch.randperm(6, generator=generator(1))
    other = 3 * a[order] + torch.arange(6, dtype=torch.float64)[:, None]
    found = groups_of(solve(statistics([a, other], (0.5, 0.5)), 6, weights=(0.5, 0.5), generator=generator()))
    assert found[6:] == [found[i] for i in order.tolist()]


def test_redundant_neurons_of_one_parent_are_joined_on_request():
    first, second = neurons(4, 0), neurons(4, 1)
    first[1] = first[0] + 1e-3 * first[2]
    stats = statistics([first, second], (0.5, 0.5))
    joined = groups_of(solve(stats, 7, weights=(0.5, 0.5), generator=generator(), within=True))
    assert joined[0] == joined[1]
    apart = groups_of(solve(stats, 5, weights=(0.5, 0.5), generator=generator()))
    assert len(set(apart[:4])) == len(set(apart[4:])) == 4


def test_means_are_weighted_by_importance():
    a = neurons(3, 0)
    scores = [torch.tensor([1.0, 1.0, 2.0]).double(), torch.tensor([3.0, 1.0, 1.0]).double()]
    stats = statistics([a, a], (0.5, 0.5), scores)
    grouping = solve(stats, 3, weights=(0.5, 0.5), generator=generator())
    torch.testing.assert_close(
        grouping.merge[0].diagonal(), stats.importance[:3] / (stats.importance.view(2, 3).sum(0))
    )
