"""Widths by similarity: copies need no more, strangers as much as the budget allows."""

import pytest
from laws import analysed, data, distance, outputs, statistics, with_permuted_copy

from fxfuse.errors import MethodError
from fxfuse.models_zoo.zoo import ZOO
from fxfuse.passes.correspond import correspond
from fxfuse.passes.costs import Budget, level_costs
from fxfuse.passes.group import group
from fxfuse.passes.rewrite import rewrite
from fxfuse.passes.similar import widened

SHARES = (0.5, 0.5)


def strangers(name):
    parents = [analysed(name, None, seed) for seed in (0, 1)]
    return correspond(parents[0], parents)


def fused(pairs, found):
    spaces = pairs.reference.axes.spaces
    widths, targets = {s.id: pairs.widths(s.id) for s in spaces}, {s.id: s.size for s in spaces}
    return rewrite(pairs, group(spaces, found, widths, targets, "hungarian", {}, SHARES, 0), SHARES)


@pytest.mark.parametrize("unit", ["parameters", "flops"])
@pytest.mark.parametrize("name", ["mlp", "digits_net", "vit"])
def test_the_network_is_as_wide_as_the_budget_allows(name, unit):
    pairs = strangers(name)
    found = statistics(pairs, data(name))
    last = 0
    for factor in (1.0, 1.3, 1.8):
        wide, widths = widened(pairs, found, SHARES, Budget(factor, unit))
        assert widths.cost == sum(level_costs(wide.reference, unit)) <= factor * widths.least * (1 + 1e-9)
        assert widths.apart >= last
        last = widths.apart
        assert outputs(fused(wide, found), ZOO[name].example(3))[0].shape[0] == 3
    assert last > 0


def test_no_budget_is_too_large():
    pairs = strangers("mlp")
    wide, widths = widened(pairs, statistics(pairs, data("mlp")), SHARES, Budget(1e9))
    assert [space.size for space in wide.reference.axes.spaces] == [24, 48]
    assert widths.threshold == 0.0
    one, two = (outputs(parent.program.module, ZOO["mlp"].example(4)) for parent in pairs.parents)
    both = outputs(fused(wide, statistics(pairs, data("mlp"))), ZOO["mlp"].example(4))
    assert distance(both, [0.5 * (a + b) for a, b in zip(one, two, strict=True)]) < 1e-5


def test_copies_are_no_wider_at_first_and_remain_the_network():
    pairs = with_permuted_copy("mlp")
    found = statistics(pairs, data("mlp"))
    wide, widths = widened(pairs, found, SHARES, Budget(1.0))
    assert (widths.apart, wide) == (0, pairs)
    wide, widths = widened(pairs, found, SHARES, Budget(1.5))
    inputs = ZOO["mlp"].example(4)
    assert distance(outputs(fused(wide, found), inputs), outputs(pairs.reference.program.module, inputs)) < 1e-5


def test_spaces_that_are_fixed_and_budgets_that_are_too_small():
    pairs = strangers("mlp")
    found = statistics(pairs, data("mlp"))
    wide, _ = widened(pairs, found, SHARES, Budget(5.0), fixed=(0,))
    assert [space.size for space in wide.reference.axes.spaces] == [12, 48]
    with pytest.raises(MethodError, match="below the smallest possible network, which has 739"):
        widened(pairs, found, SHARES, Budget(700, relative=False))
