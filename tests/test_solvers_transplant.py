"""Transplantation: selection rows, exact widths, the concatenation before anything is dropped."""

import pytest
import torch
from solver_cases import generator, linear_net, neurons, rewrite_net, run_net, statistics

from fxfuse.passes.solvers.transplant import join_copies, solve
from fxfuse.products import Products


def test_keeps_the_most_important_neurons():
    parents = [neurons(4, 0), neurons(5, 1)]
    scores = [torch.tensor([9.0, 1, 8, 2]).double(), torch.tensor([5.0, 6, 1, 7, 1]).double()]
    stats = statistics(parents, (0.5, 0.5), scores)
    grouping = solve(stats, 5, weights=(0.5, 0.5), generator=generator())
    kept = stats.importance.argsort(descending=True)[:5].sort().values
    selection = torch.eye(9, dtype=torch.float64)[kept]
    assert torch.equal(torch.cat(grouping.merge, 1), selection)
    assert torch.equal(torch.cat(grouping.unmerge), selection.T)


def test_balanced_keeps_each_parents_share_to_the_neuron():
    parents = [neurons(6, 0), neurons(3, 1)]
    scores = [torch.rand(n, generator=generator(n), dtype=torch.float64) + 10 * (n == 6) for n in (6, 3)]
    stats = statistics(parents, (0.9, 0.1), scores)
    for target, shares in ((3, [2, 1]), (4, [3, 1]), (5, [3, 2]), (8, [5, 3])):
        grouping = solve(stats, target, weights=(0.9, 0.1), generator=generator(), balanced=True)
        assert [int(m.sum()) for m in grouping.merge] == shares
        for merge, importance in zip(grouping.merge, stats.importance.split([6, 3]), strict=True):
            kept = merge.sum(0) > 0
            assert importance[kept].min() > importance[~kept].max() if bool((~kept).any()) else True


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.8, 0.2)])
def test_the_concatenation_is_the_ensemble_of_logits(weights):
    nets = [linear_net((6, 8, 5, 3), 0), linear_net((6, 4, 7, 3), 1)]
    x = neurons(6, 2)
    outputs, hidden = zip(*(run_net(net, x) for net in nets), strict=True)
    groupings = [
        solve(statistics([h[k] for h in hidden], weights), 12, weights=weights, generator=generator()) for k in (0, 1)
    ]
    result = run_net(rewrite_net(nets, groupings, weights), x)[0]
    torch.testing.assert_close(result, weights[0] * outputs[0] + weights[1] * outputs[1], rtol=1e-12, atol=1e-12)


def test_only_as_many_copies_are_joined_as_have_to_go():
    a = neurons(4, 0).repeat(2, 1)
    a[7] = 0.0
    a[2] = 0.0
    whole = torch.arange(8)
    for products in (Products(a @ a.T / 60), Products.of([a.T])):
        assert join_copies(products, whole, 0).tolist() == list(range(8))
        assert len(join_copies(products, whole, 2).unique()) == 6
        assert join_copies(products, whole, 8).tolist() == [0, 1, 2, 3, 0, 1, 4, 2]
        assert join_copies(products, torch.tensor([0, 2, 5, 6, 7]), 8).tolist() == [0, 1, 2, 3, 1]
        assert join_copies(products, whole, -3).tolist() == list(range(8))
