"""Recurrent layers: the gates of a cell share its units, layer by layer and direction by direction."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fxfuse.passes.algebra import concat, unify, unify_all
from fxfuse.passes.axis_rules.core import Call, axis_rule, own
from fxfuse.passes.axis_rules.shapes import prepare_cuts, slice_dims
from fxfuse.passes.variables import Dim, Dims, Factor, Var, alike, expand, fresh, join_product, pin, size_of, tell_apart


@axis_rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(call: Call) -> list[Dims]:
    """Gates of one cell share its units: each packed weight is that many segments of one variable."""
    if not isinstance(call.args[3], bool):
        return _recurrent_packed(call)
    x = call.dims(0)
    has_biases, layers, bidirectional = call.args[3], call.args[4], call.args[7]
    time = 1 if call.args[8] and len(x) == 3 else 0
    pin(x[time])
    batch = [x[1 - time]] if len(x) == 3 else []
    return _recurrent(call, x, batch, list(call.args[2]), has_biases, layers, bidirectional, call.args[1])


def _recurrent_packed(call: Call) -> list[Dims]:
    """The spelling for packed sequences: ``data, batch_sizes, hx, params, has_biases, layers, ...``."""
    x = call.dims(0)
    pin(x[0])
    has_biases, layers, bidirectional = call.args[4], call.args[5], call.args[8]
    state = call.args[2][0] if isinstance(call.args[2], tuple | list) else call.args[2]
    batch = [fresh(state.shape[1], pinned=True)]
    return _recurrent(call, x, batch, list(call.args[3]), has_biases, layers, bidirectional, call.args[2])


def _recurrent(
    call: Call,
    x: Dims,
    batch: Dims,
    params: list[Tensor],
    has_biases: bool,
    layers: int,
    bidirectional: bool,
    state: Any,
) -> list[Dims]:
    """``batch`` holds the dimension of samples, which the states have too, if there is one."""
    states = list(state) if isinstance(state, tuple | list) else [state]
    inputs, directions = x[-1], 2 if bidirectional else 1
    width = len(params) // (layers * directions)
    projected = width == (5 if has_biases else 3)
    read: Tensor | None = call.args[0]
    ends: list[tuple[Dim, Dim]] = []
    for layer in range(layers):
        outs = []
        for direction in range(directions):
            mine = params[(layer * directions + direction) * width :][:width]
            outs.append(_cell(call, inputs, mine, projected, states[0].shape[-1], read))
        ends.extend(outs)
        inputs = concat([out for out, _ in outs]) if directions == 2 else outs[0][0]
        read = None
    for which, given in enumerate(states):
        unify_all([(dim, call.of(given)[1]) for dim in batch])
        _initial_state(call, given, [pair[which] for pair in ends])
    out: list[Dims] = [[*(expand(dim) for dim in x[:-1]), expand(inputs)]]
    for which in range(len(call.result) - 1):
        out.append(_final_state([pair[which] for pair in ends], [expand(dim) for dim in batch]))
    return out


def _initial_state(call: Call, given: Tensor, ends: list[Dim]) -> None:
    """A state that somebody computed or learned means what the cell's units mean, layer by layer and direction by
    direction; zeros mean nothing."""
    dims = call.of(given)
    if not call.meaning(given).stored and (not dims[-1] or alike(dims[-1])):
        return
    own(dims[-1], dims[0])
    prepare_cuts(dims[0], list(range(1, len(ends))))
    for k, end in enumerate(ends):
        unify(slice_dims([expand(dim) for dim in dims], 0, k, k + 1)[-1], end)


def _final_state(ends: list[Dim], batch: Dims) -> Dims:
    """Layers x directions first: the width is a family over that index."""
    if len(ends) == 1:
        return [[], *batch, expand(ends[0])]
    which = Var(len(ends))
    which.segments = [Var(1) for _ in ends]
    width = Var(size_of(ends[0]), outer=which)
    width.family = {s: join_product(expand(end)) for s, end in zip(which.segments, ends, strict=True)}
    return [[Factor(which)], *batch, [Factor(width)]]


def _cell(
    call: Call, inputs: Dim, params: Sequence[Tensor], projected: bool, state_size: int, read: Tensor | None
) -> tuple[Dim, Dim]:
    """One layer and direction: input and hidden weights, biases, and the projection where there is one."""
    w_ih, w_hh, *rest = params
    projection = call.of(rest.pop()) if projected else None
    cell = size_of(projection[1]) if projection else state_size
    unit: Dim = [Factor(Var(cell))]
    for packed in (w_ih, w_hh, *rest):
        for gate in regroup_segments(call.of(packed)[0], cell):
            unify(gate, unit)
    out = unit
    if projection:
        out = expand(projection[0])
        tell_apart(out)  # what a constant projects is alike from the first step on, the state before it need not be
        call.join(projection[1], unit)
        call.contract(params[-1], projection[1])
    for operand, weight in ((inputs, w_ih), (out, w_hh)):
        call.join(operand, call.of(weight)[1])
        call.contract(weight, call.of(weight)[1])
    if read is not None:
        call.contract(read, inputs)
    return expand(out), expand(unit)


def regroup_segments(dim: Dim, size: int) -> list[Dim]:
    """Consecutive segments of one size."""
    total = size_of(dim)
    prepare_cuts(dim, list(range(size, total, size)))
    return [slice_dims([expand(dim)], 0, at, at + size)[0] for at in range(0, total, size)]


@axis_rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def recurrent_cell(call: Call) -> Dims | list[Dims]:
    """One step."""
    x = call.dims(0)
    states = call.args[1] if isinstance(call.args[1], tuple | list) else [call.args[1]]
    params = [p for p in call.args[2:] if p is not None]
    out, unit = _cell(call, x[-1], params, False, states[0].shape[-1], call.args[0])
    for state in states:
        dims = call.of(state)
        unify_all([*zip(x[:-1], dims[:-1], strict=True), (dims[-1], unit)])
        call.contract(state, dims[-1])
    result: Dims = [*(expand(dim) for dim in x[:-1]), expand(out)]
    return [result, result] if isinstance(call.result, tuple | list) else result
