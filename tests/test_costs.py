"""Costs by level, and where a budget cuts."""

import pytest
import torch
from laws import analysed

from fxfuse.errors import MethodError
from fxfuse.passes.branches import branched
from fxfuse.passes.combine import MeanOutput
from fxfuse.passes.correspond import correspond
from fxfuse.passes.costs import Budget, choose_cut, level_costs, parse_budget
from fxfuse.types import Grouping


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.5, Budget(1.5)),
        (2, Budget(2.0)),
        ("1.5", Budget(1.5)),
        ("1.5x", Budget(1.5)),
        ("1.25x flops", Budget(1.25, "flops")),
        ("2000 parameters", Budget(2000.0, "parameters", False)),
        ("3e6 flops", Budget(3e6, "flops", False)),
    ],
)
def test_budgets(value, expected):
    assert parse_budget(value) == expected


@pytest.mark.parametrize(
    "value", ["", "much", "1.5 apples", "-1", 0, -2.0, float("inf"), True, None, "1.2.3", "0.5 flops"]
)
def test_no_budgets(value):
    with pytest.raises(MethodError, match="a budget must be"):
        parse_budget(value)


def pairs_of(name, widths=(None, None)):
    parents = [analysed(name, width, seed) for seed, width in enumerate(widths)]
    return correspond(parents[0], parents)


def test_parameters_of_all_levels_are_the_networks():
    found = analysed("digits_net")
    assert sum(level_costs(found, "parameters")) == sum(p.numel() for p in found.program.module.parameters())


def test_operations_are_counted_per_sample():
    found = analysed("mlp")  # 20-12-24-7
    assert sum(level_costs(found, "flops")) == 2 * (20 * 12 + 12 * 24 + 24 * 7)


@pytest.mark.parametrize("unit", ["parameters", "flops"])
@pytest.mark.parametrize("name", ["digits_net", "vit", "mlp"])
def test_the_fewest_fused_levels_that_fit(name, unit):
    pairs = pairs_of(name)
    own = sum(level_costs(pairs.reference, unit))
    last = (0, 2 * own)
    for budget in range(2 * own, own - 1, -max(1, own // 12)):
        cut = choose_cut(pairs, Budget(budget, unit, relative=False), (0, 1))
        assert own <= cut.cost <= budget
        assert (cut.fused, cut.ensemble) == (own, 2 * own)
        assert (cut.levels > last[0]) == (budget < last[1])
        assert choose_cut(pairs, Budget(budget / own, unit), (0, 1)).levels == cut.levels
        last = (cut.levels, cut.cost)


def test_parents_of_other_widths_count_with_their_own():
    pairs = pairs_of("mlp", (12, 8))
    sizes = [sum(p.numel() for p in parent.program.module.parameters()) for parent in pairs.parents]
    assert choose_cut(pairs, Budget(1e9, relative=False), (0, 1)).ensemble == sum(sizes)
    assert choose_cut(pairs, Budget(1e9, relative=False), (1,)).ensemble == sizes[1]


def test_too_small_a_budget():
    pairs = pairs_of("mlp")
    with pytest.raises(MethodError, match=r"a budget of 370 parameters is below the smallest possible network.*739"):
        choose_cut(pairs, Budget(0.5), (0, 1))
    assert choose_cut(pairs, Budget(1.0), (0, 1)).levels == len(pairs.reference.partition.levels)


@pytest.mark.parametrize("name", ["tied_autoencoder", "language_model", "shared_layers"])
def test_what_is_tied_counts_once_on_either_side_of_the_cut(name):
    pairs = pairs_of(name)
    one = sum(p.numel() for p in pairs.reference.program.module.parameters())
    for factor in (1.0, 1.2, 1.5, 1.8, 2.0):
        cut = choose_cut(pairs, Budget(factor), (0, 1))
        assert (cut.fused, cut.ensemble) == (one, 2 * one)
        module = pairs.reference.program.module
        identity = {
            s.id: Grouping(s.id, (0.5 * torch.eye(s.size),) * 2, (torch.eye(s.size),) * 2)
            for s in pairs.reference.axes.spaces
        }
        if cut.levels < len(pairs.reference.partition.levels):
            made = branched(pairs, module, cut.levels, identity, lambda _: MeanOutput((0.5, 0.5)))
            assert sum(p.numel() for p in made.parameters()) == cut.cost <= factor * one
