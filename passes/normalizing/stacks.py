"""Stacked recurrent layers as one operator per layer.

``nn.LSTM(.., num_layers=2)`` hides the first layer's units: no value of the graph shows them, so nobody could match
them. Written out, layer ``l`` reads what layer ``l - 1`` gives,

    ``y_l, h_l, c_l = lstm(y_(l-1), (h0_l, c0_l), W_l)``,   ``h = cat(h_1, h_2, ..)``,

with the parameters where they were. The operators are told to keep what a backward pass needs; without dropout that
changes nothing else.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxfuse.passes.probing import PROBE, Editor

_OPERATORS: dict[str, Callable[..., Any]] = {
    "LSTM": torch.lstm,
    "GRU": torch.gru,
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
}


def split_stacks(module: fx.GraphModule) -> int:
    """Replace calls of recurrent modules of several layers; packed and unbatched sequences are left alone."""
    edit = Editor(module)
    changes = 0
    for node in list(module.graph.nodes):
        layer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(layer, nn.RNNBase) or layer.num_layers < 2:
            continue
        first = node.args[0].meta[PROBE][0] if isinstance(node.args[0], fx.Node) else None
        if not isinstance(first, Tensor) or first.ndim != 3:
            continue
        with edit.at(node):
            value, ends = _layer_by_layer(edit, layer, node)
        _replace(node, value)
        for whole, pieces in ends.items():
            _take_directly(edit, whole, pieces)
        changes += 1
    return changes


def _layer_by_layer(edit: Editor, layer: nn.RNNBase, node: fx.Node) -> tuple[Any, dict[fx.Node, list[fx.Node]]]:
    """What stands for the call, and for each final state of all layers those of the single ones."""
    path, x = str(node.target), node.args[0]
    directions = 2 if layer.bidirectional else 1
    per_layer = len(layer._flat_weights_names) // layer.num_layers
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("hx")
    ends: list[list[fx.Node]] = []
    for number in range(layer.num_layers):
        names = layer._flat_weights_names[number * per_layer :][:per_layer]
        weights = [edit.get(f"{path}.{name}") for name in names]
        if given is None:
            state = _zeros(edit, layer, x, weights, directions)
        else:
            state = _slices(edit, layer, given, slice(number * directions, (number + 1) * directions))
        hx = state if layer.mode == "LSTM" else state[0]
        options = (layer.bias, 1, 0.0, True, layer.bidirectional, layer.batch_first)
        result = edit.call(_OPERATORS[layer.mode], x, hx, weights, *options)
        x = edit.call(operator.getitem, result, 0)
        ends.append([edit.call(operator.getitem, result, 1 + i) for i in range(len(state))])
    final = {edit.call(torch.cat, [end[i] for end in ends], 0): [end[i] for end in ends] for i in range(len(ends[0]))}
    return (x, tuple(final) if layer.mode == "LSTM" else next(iter(final))), final


def _take_directly(edit: Editor, whole: fx.Node, pieces: list[fx.Node]) -> None:
    """``h[-1]`` of all layers' final states is taken of its own layer's: the layers' units have nothing in common."""
    directions = pieces[0].meta[PROBE][0].shape[0]
    for user in list(whole.users):
        index = user.args[1] if user.target is operator.getitem else None
        first, *rest = index if isinstance(index, tuple) else (index,)
        if isinstance(first, int) and not isinstance(first, bool):
            number, direction = divmod(first % (directions * len(pieces)), directions)
            with edit.at(user):
                taken = edit.call(operator.getitem, pieces[number], (direction, *rest))
            user.replace_all_uses_with(taken)
            whole.graph.erase_node(user)


def _zeros(edit: Editor, layer: nn.RNNBase, x: Any, weights: list[fx.Node], directions: int) -> list[fx.Node]:
    """The default initial state, whose width is read off the weights."""
    batch = edit.size(x, 0 if layer.batch_first else 1)
    widths = [edit.size(weights[1], 1)]  # of the state that is fed back: the projection's, where there is one
    if layer.mode == "LSTM":
        projection = weights[len(weights) // directions - 1]
        widths.append(edit.size(projection, 1) if layer.proj_size else widths[0])
    return [edit.method("new_zeros", x, (directions, batch, width)) for width in widths]


def _slices(edit: Editor, layer: nn.RNNBase, given: Any, layers: slice) -> list[fx.Node]:
    parts = [given]
    if layer.mode == "LSTM":
        both = isinstance(given, tuple | list)
        parts = list(given) if both else [edit.call(operator.getitem, given, i) for i in (0, 1)]
    return [edit.call(operator.getitem, part, layers) for part in parts]


def _replace(node: fx.Node, value: Any) -> None:
    """Let ``value``, a node or a nest of tuples of nodes, stand for ``node``."""
    if isinstance(value, fx.Node):
        node.replace_all_uses_with(value)
    else:
        for user in list(node.users):
            if user.target is operator.getitem and isinstance(user.args[1], int):
                _replace(user, value[user.args[1]])
            else:
                user.args = fx.map_arg(user.args, lambda n: value if n is node else n)
                user.kwargs = fx.map_arg(user.kwargs, lambda n: value if n is node else n)
    node.graph.erase_node(node)
