"""Operators that have no ONNX form, in operators that have one; applied before torch's exporter sees the network.

Adaptive average pooling in three dimensions is separable: output ``i`` of ``m`` along a dimension of ``n`` entries is
the mean over ``floor(i n / m) .. ceil((i + 1) n / m)``. ONNX's LSTM has no projection: such a network is unrolled over
time by torch's own decomposition, for the sequence length that it was traced with.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import get_decompositions
from torch.export import ExportedProgram

_aten = torch.ops.aten


def adaptive_average(x: Tensor, size: Sequence[int]) -> Tensor:
    """``x`` averaged down to ``size`` along its last dimensions, whose own sizes are fixed."""
    for dim, count in enumerate(size, -len(size)):
        own = x.shape[dim]
        if count == own:
            continue
        spans = [(i * own // count, -((i + 1) * own // -count)) for i in range(count)]
        x = torch.cat([x.narrow(dim, a, b - a).mean(dim, keepdim=True) for a, b in spans], dim)
    return x


def _projected(node: fx.Node) -> bool:
    parameters, biases, layers, both_ways = node.args[2], node.args[3], node.args[4], node.args[7]
    assert isinstance(parameters, Sequence)
    assert isinstance(layers, int)
    return len(parameters) > layers * (2 if both_ways else 1) * (4 if biases else 2)


def _always(node: fx.Node) -> bool:
    del node
    return True


FORMS: dict[Any, tuple[Callable[[fx.Node], bool], Callable[..., Any]]] = {
    _aten.adaptive_avg_pool3d.default: (_always, adaptive_average),
    _aten._adaptive_avg_pool3d.default: (_always, adaptive_average),
    _aten.lstm.input: (_projected, get_decompositions([_aten.lstm.input])[_aten.lstm.input]),
}
"""For an operator: which of its nodes have no ONNX form, and what computes the same."""


def with_forms(program: ExportedProgram) -> ExportedProgram:
    """The program with such operators spelt out; the very same where it has none."""
    needed = {
        node.target: FORMS[node.target][1]
        for node in program.graph.nodes
        if node.target in FORMS and FORMS[node.target][0](node)
    }
    return program.run_decompositions(needed) if needed else program
