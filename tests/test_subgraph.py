"""Pieces of a graph compute what the graph computes, and share its parameters."""

import pytest
import torch
from laws import analysed, distance, outputs
from torch import fx, nn

from fxfuse.errors import GraphError
from fxfuse.models_zoo.zoo import ZOO
from fxfuse.passes.subgraph import capture, needed_nodes, output_nodes, parameters_of, subgraph


def test_capture_gives_inner_values_and_computes_nothing_behind_them():
    found = analysed("digits_net")
    module = found.program.module
    names = [level.boundary for level in found.partition.levels]
    inputs = ZOO["digits_net"].example()
    values = outputs(capture(module, names), inputs)
    assert distance(values[-1:], outputs(module, inputs)) == 0
    first = capture(module, names[:1])
    assert len(first.graph.nodes) < len(module.graph.nodes)
    assert distance(outputs(first, inputs), values[:1]) == 0
    shapes = [tuple(v.shape[1:]) for v in values]
    assert shapes == [level.shape[1:] for level in found.partition.levels]


def test_a_piece_trains_the_graph_it_was_cut_from():
    found = analysed("mlp")
    level = found.partition.levels[1]
    piece = subgraph(found.program.module, level.inputs, (level.boundary,))
    own = dict(piece.named_parameters())
    assert set(own) == set(level.parameters)
    for name, parameter in own.items():
        assert parameter is found.program.module.get_parameter(name)


def test_a_piece_keeps_the_mode():
    module = analysed("digits_net").program.module
    name = analysed("digits_net").partition.levels[0].boundary
    assert not capture(module, [name]).training
    assert capture(module.train(), [name]).training


def test_an_input_that_is_missing():
    found = analysed("two_inputs")
    level = found.partition.levels[-1]
    with pytest.raises(GraphError, match=f"{level.boundary} needs the graph input .*, which was not given"):
        subgraph(found.program.module, (), (level.boundary,))


def small() -> fx.GraphModule:
    root = nn.Module()
    root.fc = nn.Linear(2, 2)
    root.w = nn.Parameter(torch.ones(2))
    root.register_buffer("b", torch.ones(2))
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_module("fc", (x,))
    graph.get_attr("b")
    z = graph.call_function(torch.mul, (y, graph.get_attr("w")))
    graph.output({"first": z, "again": (z, y)})
    return fx.GraphModule(root, graph)


def test_what_nodes_hold_and_need():
    module = small()
    held = {n.name: parameters_of(module, n) for n in module.graph.nodes}
    assert held == {"x": [], "fc": ["fc.weight", "fc.bias"], "b": [], "w": ["w"], "mul": [], "output": []}
    assert [n.name for n in output_nodes(module.graph)] == ["mul", "fc"]
    nodes = {n.name: n for n in module.graph.nodes}
    assert {n.name for n in needed_nodes([nodes["mul"]], set())} == {"mul", "w", "fc", "x"}
    assert {n.name for n in needed_nodes([nodes["mul"]], {nodes["fc"]})} == {"mul", "w", "fc"}
