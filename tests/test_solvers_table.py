"""Laws that hold for every solver of the table."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from solver_cases import (
    brute_error,
    check_shapes,
    fused,
    generator,
    linear_net,
    neurons,
    permute_net,
    rewrite_net,
    run_net,
    same_rows,
    statistics,
)

from fxfuse.errors import MethodError
from fxfuse.passes.solvers import SOLVERS, SolverName, check_options, find_solver, solver_options

MATCHING = sorted(set(SOLVERS) - {"average"})
ANY_WIDTH = sorted(set(SOLVERS) - {"average", "kl", "rebasin"})


def test_the_table_has_exactly_the_names():
    assert set(SOLVERS) == set(get_args(SolverName))


def test_unknown_names_and_options_suggest_the_nearest():
    with pytest.raises(MethodError, match="did you mean 'kmeans'"):
        find_solver("kmaens")
    with pytest.raises(MethodError, match="no option 'restart'; did you mean 'restarts'"):
        check_options("kmeans", {"restart": 3})
    with pytest.raises(MethodError, match="it has none"):
        check_options("average", {"restarts": 3})
    assert solver_options("kmeans") == {"restarts": 1}
    check_options("ot", {"reference": 1, "metric": "cosine"})


@pytest.mark.parametrize(
    ("name", "option", "value", "wanted"),
    [
        ("ot", "regularisation", "abc", "a finite number or null"),
        ("ot", "regularisation", [1], "a finite number or null"),
        ("ot", "regularisation", float("nan"), "a finite number or null"),
        ("ot", "reference", True, "a whole number, 'barycentre' or null"),
        ("ot", "reference", "first", "a whole number, 'barycentre' or null"),
        ("ot", "squared", "maybe", "true or false"),
        ("ot", "metric", "inner", "'euclidean' or 'cosine'"),
        ("zip", "within", 3, "true or false"),
        ("transplant", "balanced", None, "true or false"),
        ("kmeans", "restarts", 1.5, "a whole number"),
    ],
)
def test_values_of_another_kind_are_refused(name, option, value, wanted):
    with pytest.raises(MethodError, match=f"option '{option}' of {name} must be {wanted}. Got"):
        check_options(name, {option: value})


@pytest.mark.parametrize("name", SOLVERS)
def test_defaults_are_of_the_right_kind(name):
    check_options(name, solver_options(name))


@pytest.mark.parametrize("name", MATCHING)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), parents=st.integers(2, 4), width=st.integers(1, 12))
def test_permuted_copies_are_undone(name, seed, parents, width):
    random = generator(seed)
    a, importance = neurons(width, seed), torch.rand(width, generator=random, dtype=torch.float64) + 0.05
    orders = [torch.randperm(width, generator=random) for _ in range(parents)]
    copies = [a[order] for order in orders]
    weights = tuple(2 * p / (parents * (parents + 1)) for p in range(1, parents + 1))
    stats = statistics(copies, weights, [importance[order] for order in orders])
    grouping = SOLVERS[name](stats, width, weights=weights, generator=random)
    check_shapes(grouping, stats.widths, width)
    merged = fused(grouping, copies)
    assert same_rows(merged, a)
    for unmerge, copy in zip(grouping.unmerge, copies, strict=True):
        torch.testing.assert_close(unmerge @ merged, copy, rtol=0, atol=1e-9)
    assert grouping.error == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", sorted(SOLVERS))
@pytest.mark.parametrize("parent", [0, 1, 2])
def test_weight_one_gives_that_parent(name, parent):
    nets = [linear_net((5, 7, 6, 3), seed) for seed in range(3)]
    nets[2][0][3] = 0.0  # a dead neuron
    x = neurons(5, 9)
    weights = tuple(float(p == parent) for p in range(3))
    hidden = [run_net(net, x)[1] for net in nets]
    groupings = []
    for layer in range(2):
        parents = [values[layer] for values in hidden]
        stats = statistics(parents, weights)
        groupings.append(SOLVERS[name](stats, len(parents[0]), weights=weights, generator=generator()))
    result = run_net(rewrite_net(nets, groupings, weights), x)[0]
    torch.testing.assert_close(result, run_net(nets[parent], x)[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", MATCHING)
@pytest.mark.parametrize("parents", [1, 2, 4])
def test_copies_of_a_network_fuse_to_its_function(name, parents):
    net = linear_net((6, 8, 5, 3), 1)
    net[0][2] = 0.0
    net[0][3] = net[0][4]  # a dead and a duplicate neuron
    nets = [permute_net(net, seed) for seed in range(parents)]
    x, weights = neurons(6, 2), (1 / parents,) * parents
    hidden = [run_net(other, x)[1] for other in nets]
    groupings = [
        SOLVERS[name](statistics([h[k] for h in hidden], weights), width, weights=weights, generator=generator())
        for k, width in enumerate((8, 5))
    ]
    result = run_net(rewrite_net(nets, groupings, weights), x)[0]
    torch.testing.assert_close(result, run_net(net, x)[0], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ANY_WIDTH)
@pytest.mark.parametrize("target", [1, 2, 5, 6, 7, 9, 13, 14, 17, 40])
def test_any_widths_any_target(name, target):
    parents = [neurons(width, seed) for seed, width in enumerate((6, 5, 3))]
    weights = (0.5, 0.2, 0.3)
    scores = [torch.rand(len(a), generator=generator(8), dtype=torch.float64) for a in parents]
    stats = statistics(parents, weights, scores)
    grouping = SOLVERS[name](stats, target, weights=weights, generator=generator())
    check_shapes(grouping, (6, 5, 3), target)
    assert grouping.error == pytest.approx(brute_error(grouping, parents, stats.importance), abs=1e-9)
    if target >= 14 and name != "ot":  # every neuron is there; a reference parent or barycentre need not have it
        assert grouping.error == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ANY_WIDTH)
def test_a_wider_target_keeps_the_function(name):
    net = linear_net((6, 4, 5, 3), 1)
    x = neurons(6, 2)
    hidden = run_net(net, x)[1]
    groupings = [
        SOLVERS[name](statistics([hidden[k]], (1.0,)), width, weights=(1.0,), generator=generator())
        for k, width in enumerate((11, 7))
    ]
    result = run_net(rewrite_net([net], groupings, (1.0,)), x)[0]
    torch.testing.assert_close(result, run_net(net, x)[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_silent_and_equal_neurons_do_not_break(name):
    weights = (0.5, 0.5)
    first, second = neurons(8, 0), neurons(8, 1)
    first[:3], second[:5] = 0.0, 0.0
    second[5:] = second[5]
    for parents in ([first, second], [torch.zeros(8, 60).double()] * 2, [torch.ones(8, 60).double()] * 2):
        scores = [a.abs().sum(1) for a in parents]
        stats = statistics(parents, weights, [s if s.sum() > 0 else torch.ones(8).double() for s in scores])
        grouping = SOLVERS[name](stats, 8, weights=weights, generator=generator())
        check_shapes(grouping, (8, 8), 8)
        assert grouping.error is not None
        assert 0 <= grouping.error < float("inf")


@pytest.mark.parametrize("name", MATCHING)
def test_the_order_of_a_parents_neurons_does_not_matter(name):
    weights = (0.5, 0.3, 0.2)
    parents = [neurons(7, seed) for seed in range(3)]
    scores = [torch.rand(7, generator=generator(seed), dtype=torch.float64) + 0.1 for seed in range(3)]
    orders = [torch.randperm(7, generator=generator(seed)) for seed in (5, 6, 7)]
    options = {"restarts": 0} if name == "kmeans" else {}
    plain = SOLVERS[name](statistics(parents, weights, scores), 7, weights=weights, generator=generator(), **options)
    permuted = [a[order] for a, order in zip(parents, orders, strict=True)]
    other_scores = [s[order] for s, order in zip(scores, orders, strict=True)]
    other = SOLVERS[name](
        statistics(permuted, weights, other_scores), 7, weights=weights, generator=generator(), **options
    )
    assert same_rows(fused(plain, parents), fused(other, permuted))
    assert other.error == pytest.approx(plain.error, rel=1e-9)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_the_same_seed_gives_the_same_bits(name):
    parents = [neurons(9, seed) for seed in range(3)]
    weights = (0.4, 0.4, 0.2)
    runs = [SOLVERS[name](statistics(parents, weights), 9, weights=weights, generator=generator(4)) for _ in range(2)]
    for first, second in zip(runs[0].merge + runs[0].unmerge, runs[1].merge + runs[1].unmerge, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_wrong_arguments_are_named(name):
    stats = statistics([neurons(4, 0), neurons(4, 1)], (0.5, 0.5))
    with pytest.raises(MethodError, match="at least 1"):
        SOLVERS[name](stats, 0, weights=(0.5, 0.5), generator=generator())
    with pytest.raises(MethodError, match="2 parents but 1 weights"):
        SOLVERS[name](stats, 4, weights=(1.0,), generator=generator())
    with pytest.raises(MethodError, match="non-negative"):
        SOLVERS[name](stats, 4, weights=(1.5, -0.5), generator=generator())
    stats.importance[2] = -1.0
    with pytest.raises(MethodError, match="importance of space 3 must be non-negative"):
        SOLVERS[name](stats, 4, weights=(0.5, 0.5), generator=generator())
