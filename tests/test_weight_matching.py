"""Groupings from weights: laws over the zoo, the orders of the spaces, fixed points, restarts."""

import functools

import pytest
import torch
from laws import analysed, distance, model, outputs, with_permuted_copy

from fxfuse.errors import MethodError
from fxfuse.layouts import permutation_groupings
from fxfuse.models_zoo.mlp import mlp
from fxfuse.models_zoo.zoo import ZOO
from fxfuse.passes.correspond import Correspondence, correspond
from fxfuse.passes.rewrite import rewrite
from fxfuse.passes.weight_matching import match_weights, trees_in_order
from fxfuse.passes.weight_statistics import objective, parameter_scales
from fxfuse.pipeline import analyse, fuse

SEARCHES = [("ot", "sweep"), ("rebasin", "ascent"), ("kmeans", "sweep"), ("transplant", "back")]


@functools.cache
def twins(name: str) -> Correspondence:
    return with_permuted_copy(name)


@pytest.mark.parametrize(("solver", "search"), SEARCHES)
@pytest.mark.parametrize("name", ZOO)
def test_a_permuted_copy_is_undone_without_data(name, solver, search):
    pairs = twins(name)
    found = match_weights(pairs, (0.5, 0.5), solver, {}, search=search, restarts=0).groupings
    inputs = ZOO[name].example(6, seed=9)
    fused = rewrite(pairs, found, (0.5, 0.5))
    assert distance(outputs(fused, inputs), outputs(analysed(name).program.module, inputs)) < 1e-5


def family(count: int, sizes: tuple[int, ...] = (12, 9, 8, 7, 4)) -> Correspondence:
    parents = []
    for seed in range(count):
        torch.manual_seed(seed)
        parents.append(mlp(sizes))
    found = [analyse(parent, torch.randn(3, sizes[0]), name=f"p{i}") for i, parent in enumerate(parents)]
    return correspond(found[0], found)


def test_spaces_come_in_the_order_of_the_graph():
    pairs = family(2)
    names = [tree[0].name for tree in trees_in_order(pairs)]
    assert names == [space.name for space in pairs.reference.axes.spaces]
    heads = trees_in_order(twins("vit"))
    assert any(len(tree) > 1 and all(inner.outer == tree[0].id for inner in tree[1:]) for tree in heads)


@pytest.mark.parametrize("parents", [2, 3])
def test_no_space_can_raise_the_objective_at_the_fixed_point(parents):
    pairs = family(parents)
    shares = (1 / parents,) * parents
    found = match_weights(pairs, shares, "rebasin", {}, search="ascent", restarts=2)
    scales = parameter_scales(pairs)
    best = objective(pairs, found.groupings, shares, scales)
    assert best == pytest.approx(found.objective, rel=1e-6)
    random = torch.Generator().manual_seed(1)
    for _ in range(20):  # one parent's neurons of one space in another order
        for space in pairs.reference.axes.spaces:
            other = permutation_groupings([space], random)[space.id].merge[0]
            mine = found.groupings[space.id]
            moved = type(mine)(
                space.id,
                (*mine.merge[:-1], other @ mine.merge[-1]),
                (*mine.unmerge[:-1], mine.unmerge[-1] @ other.T),
            )
            assert objective(pairs, {**found.groupings, space.id: moved}, shares, scales) <= best + 1e-6 * abs(best)


def test_restarts_never_lower_the_objective():
    pairs = family(2)
    values = [match_weights(pairs, (0.5, 0.5), "rebasin", {}, search="ascent", restarts=n).objective for n in (0, 3)]
    assert values[1] >= values[0]


def test_importance_that_needs_data_is_refused():
    with pytest.raises(MethodError, match="looks at data, but this method looks at weights only"):
        match_weights(family(2), (0.5, 0.5), "kmeans", {}, importance="conductance")


@pytest.mark.parametrize("method", ["ot-weights", "rebasin-weights", "transplant"])
@pytest.mark.parametrize("parents", [1, 2, 4])
def test_methods_on_weights_need_no_data(method, parents):
    nets = [model("mlp", seed=seed) for seed in range(parents)]
    x = ZOO["mlp"].example(3)
    result = fuse(nets, method=method, example=x, compare=False)
    assert all(bool(value.isfinite().all()) for value in result.state_dict().values())
    copies = fuse([nets[0]] * parents, method=method, example=x, compare=False)
    inputs = ZOO["mlp"].example(6, seed=9)
    assert distance(outputs(copies.module, inputs), outputs(nets[0], inputs)) < 1e-5


@pytest.mark.parametrize("name", ["mlp", "functional_conv", "digits_net"])
def test_before_anything_is_dropped_transplantation_is_the_ensemble_of_logits(name):
    """Norms across neurons apart, which a concatenation changes; batch norms are not."""
    nets = [model(name, seed=seed) for seed in range(2)]
    result = fuse(nets, method="transplant", target=2.0, example=ZOO[name].example(3), compare=False)
    inputs = ZOO[name].example(8, seed=4)
    ensemble = [(a + b) / 2 for a, b in zip(*(outputs(net, inputs) for net in nets), strict=True)]
    assert distance(outputs(result.module, inputs), ensemble) < 1e-5


@pytest.mark.parametrize("width", [0.4, 0.75, 1.3])
def test_transplantation_meets_the_width_exactly(width):
    nets = [model("mlp", seed=seed) for seed in range(3)]
    result = fuse(nets, method="transplant", target=width, example=ZOO["mlp"].example(3), compare=False)
    for space, grouping in result.groupings.items():
        size = result.analysis.axes.spaces[space].size
        assert {m.shape[0] for m in grouping.merge} == {size}
        kept = torch.cat(grouping.merge, 1)
        assert torch.equal(kept.sum(1), torch.ones(size, dtype=torch.float64))
