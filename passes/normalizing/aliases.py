"""Which nodes share memory, and which nodes write to it.

Sharing is read off the probes: fake tensors have storages, and a view has its base's. So ``reshape`` and
``contiguous`` alias exactly where they would when run.
"""

import operator
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxfuse.passes.graphs import words
from fxfuse.passes.probing import PROBE

_OPERATORS = frozenset(
    getattr(operator, name)
    for name in words("iadd isub imul itruediv ifloordiv imod ipow iand ior ixor imatmul ilshift irshift")
)


_MARKS = words("requires_grad_ share_memory_")
"""Methods whose names end as those of writes do, and that write no data."""


def storage(value: Any) -> int | None:
    """Identity of the memory of a (fake) tensor."""
    return int(value.untyped_storage()._cdata) if isinstance(value, Tensor) else None


def mutated(node: fx.Node) -> fx.Node | None:
    """The node whose value ``node`` writes to, if it writes at all."""
    target: Any = node.target
    first = node.args[0] if node.args else None
    if node.op == "call_method":
        name = str(target)
        writes = (name.endswith("_") and not name.endswith("__")) or name == "__setitem__"
        writes = writes and name not in _MARKS
    elif node.op != "call_function":
        return None
    elif target is operator.setitem or target in _OPERATORS:
        writes = True
    elif isinstance(target, torch._ops.OpOverload):
        written = [a for a in target._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        if written and written[0].kwarg_only:  # ``mul.out`` of torch.export
            return node.kwargs[written[0].name]  # type: ignore[return-value]  # a tensor's node
        writes = bool(written)
    else:
        if "out" in node.kwargs and isinstance(node.kwargs["out"], fx.Node):
            return node.kwargs["out"]
        name = getattr(target, "__name__", "")
        writes = inplace_flag(node) is True or (name.endswith("_") and not name.endswith("__") and _is_torch(target))
    return first if writes and isinstance(first, fx.Node) and _is_tensor(first) else None


def _is_torch(target: Any) -> bool:
    name = target.__name__
    return any(getattr(space, name, None) is target for space in (torch, F, torch.Tensor))


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta[PROBE][0], Tensor)


_INPLACE_POSITION = {
    F.relu: 1,
    F.relu6: 1,
    F.elu: 2,
    F.selu: 1,
    F.celu: 2,
    F.leaky_relu: 2,
    F.rrelu: 4,
    F.hardtanh: 3,
    F.hardswish: 1,
    F.hardsigmoid: 1,
    F.silu: 1,
    F.mish: 1,
    F.threshold: 3,
    F.dropout: 3,
    F.dropout1d: 3,
    F.dropout2d: 3,
    F.dropout3d: 3,
    F.alpha_dropout: 3,
    F.feature_alpha_dropout: 3,
}


def inplace_flag(node: fx.Node) -> Any:
    """The ``inplace`` argument of a functional activation, ``None`` if it has none."""
    if "inplace" in node.kwargs:
        return node.kwargs["inplace"]
    position = _INPLACE_POSITION.get(node.target)  # type: ignore[arg-type]  # other targets are simply not in the table
    return node.args[position] if position is not None and len(node.args) > position else None


def without_inplace_flag(node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The node's arguments without ``inplace``."""
    position = _INPLACE_POSITION.get(node.target)  # type: ignore[arg-type]  # other targets are simply not in the table
    args = node.args if position is None else node.args[:position]
    return tuple(args), {k: v for k, v in node.kwargs.items() if k != "inplace"}


class Aliases:
    """The view relation of a graph: each node's parent is the input whose memory it shares.

    A piece of a tuple that is a view of nothing owns its memory, unless another piece has the same.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.parent: dict[fx.Node, fx.Node] = {}
        self.children: dict[fx.Node, list[fx.Node]] = {}
        for node in graph.nodes:
            memory = _storages(node)
            for source in node.all_input_nodes:
                if memory & _storages(source) and not (source not in self.parent and _is_tuple_of_owners(source)):
                    self.parent[node] = source
                    self.children.setdefault(source, []).append(node)
                    break

    def root(self, node: fx.Node) -> fx.Node:
        """The node that owns the memory."""
        while node in self.parent:
            node = self.parent[node]
        return node

    def below(self, node: fx.Node) -> Iterator[fx.Node]:
        """All views of ``node``, parents first."""
        for child in self.children.get(node, []):
            yield child
            yield from self.below(child)


def _is_tuple_of_owners(node: fx.Node) -> bool:
    value = node.meta[PROBE][0]
    return isinstance(value, tuple | list) and len(_storages(node)) == len(value)


def _storages(node: fx.Node) -> set[int]:
    value = node.meta[PROBE][0] if node.op != "output" else None
    values = value if isinstance(value, tuple | list) else (value,)
    return {found for v in values if (found := storage(v)) is not None}
