"""The laws of the compiler, over every model of the zoo: analysis changes nothing, levels are the network."""

import copy
import functools

import pytest
import torch
from laws import analysed, distance, grouped, model, outputs

from fxfuse.models_zoo.zoo import ZOO
from fxfuse.passes.axis_law import permutation_error
from fxfuse.passes.correspond import correspond
from fxfuse.passes.partition import partition
from fxfuse.passes.subgraph import subgraph
from fxfuse.types import Partition

EVERY = pytest.mark.parametrize("name", ZOO)
GRANULARITIES = ("block", "layer", 3)


@EVERY
def test_permuting_every_space_leaves_the_function(name):
    found = analysed(name)
    assert found.axes.spaces
    assert not found.axes.opaque
    assert permutation_error(found.program, found.axes, seed=4) < 1e-10  # float64; rounding is about 1e-15


@EVERY
def test_tracing_leaves_the_function(name):
    inputs = ZOO[name].example(5, seed=3)
    found = outputs(analysed(name).program.module, inputs)
    assert distance(found, outputs(model(name), inputs)) < 1e-5  # float32, other kernels


@functools.cache
def partitions(name: str) -> list[Partition]:
    found = analysed(name)
    return [partition(found.program, found.axes, granularity) for granularity in GRANULARITIES]


@EVERY
def test_every_parameter_lies_in_exactly_one_level(name):
    module = analysed(name).program.module
    used = {id(p) for p in module.parameters()}  # no model of the zoo has a parameter that evaluation does not use
    for found in partitions(name):
        names = [p for level in found.levels for p in level.parameters]
        assert len(set(names)) == len(names)
        held = [id(module.get_parameter(p)) for p in names]
        assert len(held) == len(used)
        assert set(held) == used


@EVERY
def test_levels_form_a_dag_in_order(name):
    graph = analysed(name).program.module.graph
    inputs = {node.name for node in graph.nodes if node.op == "placeholder"}
    order = {node.name: i for i, node in enumerate(graph.nodes)}
    for found in partitions(name):
        known = set(inputs)
        for index, level in enumerate(found.levels):
            assert level.index == index
            assert level.nodes[-1] == level.boundary
            assert [order[n] for n in level.nodes] == sorted(order[n] for n in level.nodes)
            assert known >= set(level.inputs)
            known.add(level.boundary)
        assert len({level.name for level in found.levels}) == len(found.levels)
        assert len({level.boundary for level in found.levels}) == len(found.levels)


@EVERY
def test_running_the_levels_is_running_the_network(name):
    found = analysed(name)
    module = found.program.module
    inputs = ZOO[name].example(4, seed=3)
    expected = outputs(module, inputs)
    final = next(node for node in reversed(module.graph.nodes) if node.op == "output").all_input_nodes
    for cut in partitions(name):
        values = {n.name: x for n, x in zip(module.graph.find_nodes(op="placeholder"), inputs, strict=True)}
        with torch.no_grad():
            for level in cut.levels:
                piece = subgraph(module, level.inputs, [level.boundary])
                (values[level.boundary],) = piece(*(values[n] for n in level.inputs))
        got = [values[node.name] for node in dict.fromkeys(final)]
        assert distance(got, expected[: len(got)]) == 0  # the same kernels on the same values


@EVERY
def test_one_parent_is_given_back(name):
    found = analysed(name)
    fused = grouped(correspond(found, [found]), {}, "average")
    for key, value in found.program.module.state_dict().items():
        assert torch.equal(fused.state_dict()[key], value), key


@EVERY
def test_the_state_is_the_users_own(name):
    found = analysed(name)
    own = model(name, seed=7)
    own.load_state_dict(found.program.module.state_dict(), strict=True)
    inputs = ZOO[name].example(4, seed=3)
    assert distance(outputs(own, inputs), outputs(found.program.module, inputs)) < 1e-5
    twin = copy.deepcopy(found.program.module)
    assert distance(outputs(twin, inputs), outputs(found.program.module, inputs)) == 0
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in found.program.module.parameters()}
