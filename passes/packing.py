"""Packed sequences as padded ones, while a network is traced.

``pack_padded_sequence`` puts sequences of lengths ``n_b`` into a tensor whose size depends on the lengths, which no
graph can say. A recurrence over them is one over the padded input, step for step: with ``T`` steps and

    ``rev(x)_t = x_(n-1-t)`` for ``t < n``, ``x_t`` behind that,

the forward direction is ``y = f(x)``, because step ``t`` reads no later one; the backward direction is
``y = rev(f(rev(x)))``; the final state is ``y_(n-1)``. What stands at ``t >= n`` is never read by what stands before,
and padding again overwrites it. Here ``torch.nn.utils.rnn``'s own functions run on padded data: a ``PackedSequence``
holds the padded tensor, batch first, and :class:`Steps` in the place of the batch sizes. Layers and directions become
one operator each, with the parameters where they are.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fxfuse.errors import TraceError

_OPERATORS: dict[str, Callable[..., Any]] = {
    "LSTM": torch.lstm,
    "GRU": torch.gru,
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
}
_REFUSED = (
    "has no form for padded sequences; keep the module that holds this line as a leaf (leaves, --leaf), or leave out "
    "the packing"
)


class Steps:
    """What stands for a packed sequence's batch sizes: the sequences' ``lengths`` and the number of steps."""

    device = torch.device("cpu")

    def __init__(self, lengths: Any, steps: Any) -> None:
        self.lengths = lengths
        self.steps = steps

    def size(self, dim: int) -> Any:
        """As many batch sizes as there are steps."""
        del dim
        return self.steps

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise TraceError(f"the batch sizes of a packed sequence are asked for {name!r}, which {_REFUSED}")


class CellState:
    """What stands for an LSTM's final cell state, which the outputs do not show: whoever reads it is told."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TraceError(f"the final cell state of an LSTM over packed sequences {_REFUSED}")

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse()

    __getitem__ = __iter__ = __add__ = __mul__ = __len__ = _refuse

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> NoReturn:
        cls()._refuse()


def is_padded(sequence: Any) -> bool:
    """Whether this is a packed sequence that holds padded data."""
    return isinstance(sequence, PackedSequence) and isinstance(sequence.batch_sizes, Steps)


@contextlib.contextmanager
def padded_sequences(is_traced: Callable[[Any], bool]) -> Iterator[list[str]]:
    """Within the block tensors that ``is_traced`` are packed as this file says; gives notes on what that changes."""
    notes: list[str] = []
    primitives: Any = torch._VF
    pack, pad = primitives._pack_padded_sequence, primitives._pad_packed_sequence
    forwards = {kind: kind.forward for kind in (nn.LSTM, nn.GRU, nn.RNN)}

    def packing(x: Any, lengths: Any, batch_first: bool) -> Any:
        if not is_traced(x):
            return pack(x, lengths, batch_first)
        data = x if batch_first else x.transpose(0, 1)
        return data, Steps(lengths, data.shape[1])

    def padding(data: Any, steps: Any, batch_first: bool, value: float, total: Any) -> Any:
        if not isinstance(steps, Steps):
            return pad(data, steps, batch_first, value, total)
        if total is steps.steps:
            notes[:] = [
                "sequences that are packed and padded again keep the input's length, however long the longest is"
            ]
        return _padded(data, steps, batch_first, value, int(total))

    def wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(layer: nn.RNNBase, x: Any, hx: Any = None) -> Any:
            return _recurrence(layer, x, hx) if is_padded(x) else original(layer, x, hx)

        return forward

    try:
        primitives._pack_padded_sequence, primitives._pad_packed_sequence = packing, padding
        for kind, original in forwards.items():
            kind.forward = wrapped(original)  # type: ignore[method-assign]
        yield notes
    finally:
        for kind, original in forwards.items():
            kind.forward = original  # type: ignore[method-assign]
        del primitives._pack_padded_sequence, primitives._pad_packed_sequence


def _padded(data: Any, steps: Steps, batch_first: bool, value: float, total: int) -> tuple[Any, Any]:
    """The sequences with ``value`` behind their ends, ``total`` steps long, and their lengths."""
    behind = _positions(data) >= steps.lengths.to(data.device).unsqueeze(1)
    for _ in range(data.dim() - 2):
        behind = behind.unsqueeze(-1)
    data = data.masked_fill(behind, value)
    more = total - int(data.shape[1])
    if more:
        data = F.pad(data, (0, 0) * (data.dim() - 2) + (0, more), value=value)
    return data if batch_first else data.transpose(0, 1), steps.lengths


def _positions(data: Any) -> Any:
    return torch.arange(int(data.shape[1]), device=data.device).unsqueeze(0)


def _recurrence(layer: nn.RNNBase, sequence: PackedSequence, hx: Any) -> tuple[PackedSequence, Any]:
    """``layer`` on padded data: the outputs, and the final states of all layers and directions."""
    x, order = sequence.data, sequence.sorted_indices
    assert isinstance(sequence.batch_sizes, Steps)
    lengths, positions = sequence.batch_sizes.lengths.to(x.device).unsqueeze(1), _positions(x)
    turned = torch.where(positions < lengths, lengths - 1 - positions, positions).unsqueeze(-1)
    last = (positions == lengths - 1).unsqueeze(-1).to(x.dtype)
    directions = 2 if layer.bidirectional else 1
    names, per = layer._flat_weights_names, len(layer._flat_weights_names) // (layer.num_layers * directions)
    given = None if hx is None else layer.permute_hidden(hx, order)
    ends: list[Tensor] = []
    for number in range(layer.num_layers):
        outs = []
        for direction in range(directions):
            place = number * directions + direction
            weights = [getattr(layer, name) for name in names[place * per :][:per]]
            data = x.gather(1, turned.expand_as(x)) if direction else x
            state = _zeros(layer, x, weights) if given is None else _slices(given, place)
            hidden = state if layer.mode == "LSTM" else state[0]
            out = _OPERATORS[layer.mode](data, hidden, weights, layer.bias, 1, 0.0, True, False, True)[0]
            ends.append((out * last).sum(1))
            outs.append(out.gather(1, turned.expand_as(out)) if direction else out)
        x = torch.cat(outs, -1) if direction else outs[0]
    final = torch.stack(ends)
    if sequence.unsorted_indices is not None:
        final = final.index_select(1, sequence.unsorted_indices)
    made = PackedSequence(x, sequence.batch_sizes, order, sequence.unsorted_indices)
    return made, (final, CellState()) if layer.mode == "LSTM" else final


def _zeros(layer: nn.RNNBase, x: Any, weights: list[Any]) -> list[Any]:
    """The default initial state. It takes its width from the weights, not from a number that is written down."""
    fed_back = weights[1]  # its width is the projection's, where there is one
    widths = [fed_back]
    if layer.mode == "LSTM":
        widths.append(weights[-1] if layer.proj_size else fed_back)
    return [torch.zeros_like(weight).sum(0).repeat(1, x.shape[0], 1) for weight in widths]


def _slices(given: Any, place: int) -> list[Any]:
    parts = given if isinstance(given, tuple) else (given,)
    return [part[place : place + 1] for part in parts]
