"""Make in-place operators functional.

A write ``t.op_(...)`` becomes ``t' = t.op(...)``; from there on every reader of ``t`` reads ``t'``. If ``t`` is a view,
its base is rebuilt with ``t'`` in its place (the view's inverse: scatter for slices, reshape for reshapes, transpose
for transposes), up to the tensor that owns the memory, and every other view of that tensor which is read later is
taken again from the rebuilt base.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxfuse.errors import GraphError
from fxfuse.passes.graphs import WHERE, target_name, words
from fxfuse.passes.normalizing.aliases import Aliases, inplace_flag, mutated, without_inplace_flag
from fxfuse.passes.normalizing.pieces import as_slice, join_pieces
from fxfuse.passes.probing import PROBE, Editor

_PURE_OPERATOR = {
    getattr(operator, f"i{name}"): getattr(operator, name)
    for name in words("add sub mul truediv floordiv mod pow matmul xor lshift rshift")
} | {operator.iand: operator.and_, operator.ior: operator.or_}


def functionalize(module: fx.GraphModule) -> int:
    """Replace every in-place operator on data by its functional form."""
    _clear_flags(module.graph)
    if not _writes(module.graph):
        return 0
    join_pieces(module)
    _slice_pieces(module)
    writes = _writes(module.graph)
    memory = _Memory(module, writes)
    for node in list(module.graph.nodes):
        memory.redirect(node)
        if node in writes:
            memory.write(node)
    for node in reversed(writes):
        module.graph.erase_node(node)
    return len(writes)


def _writes(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """What each node that writes in place writes to."""
    return {node: target for node in graph.nodes if (target := mutated(node)) is not None}


def _slice_pieces(module: fx.GraphModule) -> None:
    """Where pieces of a tuple are views of memory that is written to, read them as slices of it."""
    edit, aliases = Editor(module), Aliases(module.graph)
    written = {aliases.root(target) for target in _writes(module.graph).values()}
    for node in list(module.graph.nodes):
        if isinstance(node.meta[PROBE][0], tuple | list) and node in aliases.parent and aliases.root(node) in written:
            for piece in list(node.users):
                if piece.target is operator.getitem:
                    piece.replace_all_uses_with(as_slice(edit, piece, aliases.parent[node]))
                    module.graph.erase_node(piece)


def _clear_flags(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if len(_outs(node)) > 1:
            raise _no_form(node)
        if node.op == "call_function" and inplace_flag(node) is False:
            node.args, node.kwargs = without_inplace_flag(node)


class _Memory:
    """What every node's memory holds by now, as a node of the functional graph."""

    def __init__(self, module: fx.GraphModule, writes: dict[fx.Node, fx.Node]) -> None:
        self.edit = Editor(module)
        self.writes = writes
        self.aliases = Aliases(module.graph)
        self.order = {node: i for i, node in enumerate(module.graph.nodes)}
        self.last_read = {n: max((self.order[u] for u in n.users), default=-1) for n in module.graph.nodes}
        self.arguments = {n: (n.args, n.kwargs) for n in module.graph.nodes}
        self.now: dict[fx.Node, fx.Node] = {}

    def redirect(self, node: fx.Node) -> None:
        """Let ``node`` read what its inputs hold by now."""
        if any(n in self.now for n in node.all_input_nodes):
            node.args = fx.map_arg(node.args, self._held)
            node.kwargs = fx.map_arg(node.kwargs, self._held)

    def _held(self, node: fx.Node) -> fx.Node:
        return self.now.get(node, node)

    def write(self, node: fx.Node) -> None:
        """Carry out the write that ``node`` stands for, and tell every alias."""
        target = self.writes[node]
        with self.edit.at(node):
            value = _pure(self.edit, node, self._held(target))
            self.now[target] = value
            path = [target]
            while (view := path[-1]) in self.aliases.parent:
                base = self.aliases.parent[view]
                held = self.now[view]
                self.now[base] = held if view in self.writes else _put_back(self.edit, view, self._held(base), held)
                path.append(base)
            for view in self.aliases.below(path[-1]):
                if view not in path and self.order[view] < self.order[node] and self._read_after(view, node):
                    self.now[view] = self._take_again(view)
        self.now[node] = self.now[target]

    def _read_after(self, view: fx.Node, node: fx.Node) -> bool:
        views = (view, *self.aliases.below(view))
        return any(self.last_read[v] > self.order[node] for v in views)

    def _take_again(self, view: fx.Node) -> fx.Node:
        if view in self.writes:
            return self._held(self.writes[view])
        args, kwargs = (fx.map_arg(a, self._held) for a in self.arguments[view])
        if view.op == "call_method":
            return self.edit.method(str(view.target), *args, **kwargs)
        return self.edit.call(view.target, *args, **kwargs)  # type: ignore[arg-type]


def _pure(edit: Editor, node: fx.Node, target: fx.Node) -> fx.Node:
    """The value that ``node`` would have written to ``target``, with the shape and type of ``target``."""
    operator_: Any = node.target
    if operator_ is operator.setitem or operator_ == "__setitem__":
        return scatter(edit, target, node.args[1], node.args[2])
    if inplace_flag(node):
        args, kwargs = without_inplace_flag(node)
        value = edit.call(operator_, *args, **kwargs)
    elif operator_ in _PURE_OPERATOR:
        value = edit.call(_PURE_OPERATOR[operator_], *node.args)
    elif node.op == "call_method":
        value = _pure_method(edit, str(operator_), node)
    elif operator_ is torch.ops.aten.copy_.default and isinstance(node.args[1], fx.Node):
        value = node.args[1]
    elif isinstance(operator_, torch._ops.OpOverload):
        value = edit.call(_pure_overload(operator_, node), *node.args, **_without_out(node))
    elif "out" in node.kwargs:
        value = edit.call(operator_, *node.args, **_without_out(node))
    else:
        name = operator_.__name__[:-1]
        pure = getattr(torch, name, None) or getattr(F, name, None)
        if pure is None:
            raise _no_form(node)
        value = edit.call(pure, *node.args, **node.kwargs)
    return _as_written(edit, value, target)


def _outs(node: fx.Node) -> list[Any]:
    """What an operator is told to write to by name: ``out`` of a function, any names of an overload."""
    if isinstance(node.target, torch._ops.OpOverload):
        named = [a.name for a in node.target._schema.arguments if a.kwarg_only and a.alias_info is not None]
        return [node.kwargs[name] for name in named if name in node.kwargs]
    found = node.kwargs.get("out") if node.op == "call_function" else None
    return list(found) if isinstance(found, tuple | list) else []


def _without_out(node: fx.Node) -> dict[str, Any]:
    return {k: v for k, v in node.kwargs.items() if k != "out"}


def _pure_method(edit: Editor, name: str, node: fx.Node) -> fx.Node:
    if name == "copy_":
        return node.args[1] if isinstance(node.args[1], fx.Node) else edit.call(torch.full_like, *node.args[:2])
    if name == "zero_":
        return edit.call(torch.zeros_like, node.args[0])
    if name == "fill_":
        return edit.method(
            "masked_fill", node.args[0], edit.call(torch.ones_like, node.args[0], dtype=torch.bool), node.args[1]
        )
    if not hasattr(Tensor, name[:-1]):
        raise _no_form(node)
    return edit.method(name[:-1], *node.args, **node.kwargs)


def _pure_overload(target: Any, node: fx.Node) -> Callable[..., Any]:
    packet = target._schema.name.split("::")[1]
    space = getattr(torch.ops, target.namespace)
    if not packet.endswith("_"):  # ``mul.out``: the overload that takes the same but what it writes to
        for overload in (getattr(getattr(space, packet), name) for name in getattr(space, packet).overloads()):
            if not overload._schema.is_mutable and _taken(overload) == _taken(target):
                return overload  # type: ignore[no-any-return]
        raise _no_form(node)
    pure = getattr(space, packet.rstrip("_"), None)
    if pure is None or target._overloadname not in pure.overloads():
        raise _no_form(node)
    return getattr(pure, target._overloadname)  # type: ignore[no-any-return]


def _taken(overload: Any) -> list[tuple[str, str]]:
    """Names and types of the arguments that an overload reads."""
    return [(a.name, str(a.type)) for a in overload._schema.arguments if a.alias_info is None]


def _no_form(node: fx.Node) -> GraphError:
    return GraphError(
        f"no functional form for the in-place operator {node.target} at {node.meta.get(WHERE, '?')}; "
        "rewrite the line without writing in place"
    )


def _as_written(edit: Editor, value: fx.Node, target: fx.Node) -> fx.Node:
    """``value`` as it would look after being stored in ``target``: same type, same shape."""
    have, want = value.meta[PROBE], target.meta[PROBE]
    if have[0].dtype != want[0].dtype:
        value = edit.method("to", value, edit.call(getattr, target, "dtype"))
    if any(h.shape != w.shape for h, w in zip(have, want, strict=True)):
        value = edit.method("expand_as", value, target)
    return value


def _put_back(edit: Editor, view: fx.Node, base: fx.Node, value: fx.Node) -> fx.Node:
    """``base`` with ``value`` where ``view`` looks at it."""
    name = target_name(view).split(".")[0]
    if _is_whole(view, base) or name in {"contiguous", "to", "detach", "alias", "float", "type_as", "clone"}:
        return value
    if view.target is operator.getitem:
        return scatter(edit, base, view.args[1], value)
    shape = view.meta[PROBE][0].shape
    rest: list[Any] = [*view.args[1:], *view.kwargs.values()]
    if name in {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as"}:
        return edit.method("view_as", edit.method("contiguous", value), base)
    if name in {"transpose", "swapaxes", "t"}:
        dims = rest if len(rest) == 2 else [0, 1]
        return edit.call(torch.transpose, value, *dims)
    if name == "permute":
        dims = list(rest[0]) if isinstance(rest[0], tuple | list) else rest
        inverse = [0] * len(shape)
        for position, dim in enumerate(dims):
            inverse[dim % len(shape)] = position
        return edit.call(torch.permute, value, tuple(inverse))
    if name == "select":
        return edit.call(torch.select_scatter, base, value, *rest)
    if name == "diagonal":
        return edit.call(torch.diagonal_scatter, base, value, *view.args[1:], **view.kwargs)
    if name in {"narrow", "slice"}:
        dim, start, stop, step = (rest + [None] * 4)[:4]
        if name == "narrow":
            stop = edit.call(operator.add, start, stop)
        return _slice_scatter(edit, base, value, dim or 0, slice(start, stop, step))
    raise GraphError(
        f"a view made by {name} at {view.meta.get(WHERE, '?')} is written in place, and {name} cannot be inverted; "
        "rewrite the line without writing in place"
    )


def _is_whole(view: fx.Node, base: fx.Node) -> bool:
    """Whether a view shows its base as it lies in memory: dropout in evaluation, ``Identity``, ``x[:]``."""
    pairs = zip(view.meta[PROBE], base.meta[PROBE], strict=True)
    return all(isinstance(v, Tensor) and isinstance(b, Tensor) and _place(v) == _place(b) for v, b in pairs)


def _place(x: Tensor) -> tuple[object, ...]:
    return x.dtype, x.shape, x.stride(), x.storage_offset()


def scatter(edit: Editor, base: fx.Node, index: Any, value: Any) -> fx.Node:
    """``base`` after ``base[index] = value``, from functional operators only."""
    items = list(index) if isinstance(index, tuple | list) else [index]
    rank = base.meta[PROBE][0].dim()
    plain = [_is_basic(item) for item in items]
    if not all(plain):
        return _scatter_tensor(edit, base, items, value)
    used = sum(item is not None and item is not Ellipsis for item in items)
    if Ellipsis in items:
        at = items.index(Ellipsis)
        items = [*items[:at], *[slice(None)] * (rank - used), *items[at + 1 :]]
    return _scatter_plain(edit, base, items, 0, value)


def _is_basic(item: Any) -> bool:
    if isinstance(item, fx.Node):
        return not isinstance(item.meta[PROBE][0], Tensor)
    return item is None or item is Ellipsis or (isinstance(item, int | slice) and not isinstance(item, bool))


def _scatter_plain(edit: Editor, base: fx.Node, items: list[Any], dim: int, value: Any) -> fx.Node:
    """Peel one index after the other: ``base' = put(base, put(take(base), rest, value))``."""
    while items and isinstance(items[0], slice) and items[0] == slice(None):
        items, dim = items[1:], dim + 1
    if not items:
        return _filled(edit, base, value)
    item, rest = items[0], items[1:]
    if item is None:
        raise GraphError("writing through a new axis (x[None] = v) has no functional form here; drop the None")
    if isinstance(item, slice):
        inner = edit.call(operator.getitem, base, (*[slice(None)] * dim, item))
        new = _scatter_plain(edit, inner, rest, dim + 1, value)
        return _slice_scatter(edit, base, new, dim, item)
    inner = edit.call(torch.select, base, dim, item)
    new = _scatter_plain(edit, inner, rest, dim, value)
    return edit.call(torch.select_scatter, base, new, dim, item)


def _slice_scatter(edit: Editor, base: fx.Node, value: fx.Node, dim: int, cut: slice) -> fx.Node:
    """``base`` with ``value`` in a slice of one dimension; ``value`` itself where the slice is everything."""
    stop = None if isinstance(cut.stop, int) and cut.stop >= _END else cut.stop
    if cut.start in (None, 0) and stop is None and cut.step in (None, 1):
        return value
    return edit.call(torch.slice_scatter, base, value, dim, cut.start, stop, cut.step or 1)


_END = 2**62
"""Export writes an open end of a slice as a number beyond this."""


def _filled(edit: Editor, like: fx.Node, value: Any) -> fx.Node:
    if not isinstance(value, fx.Node) or not isinstance(value.meta[PROBE][0], Tensor):
        return edit.call(torch.full_like, like, value)
    rank, have = like.meta[PROBE][0].dim(), value.meta[PROBE][0].dim()
    for _ in range(have - rank):  # leading dimensions of size one, as assignment allows
        value = edit.call(torch.squeeze, value, 0)
    return _as_written(edit, value, like)


def _scatter_tensor(edit: Editor, base: fx.Node, items: list[Any], value: Any) -> fx.Node:
    """Indices that are tensors: a mask over leading dimensions or integer positions."""
    first = items[0]
    is_value = isinstance(value, fx.Node) and isinstance(value.meta[PROBE][0], Tensor)
    if len(items) == 1 and isinstance(first, fx.Node) and first.meta[PROBE][0].dtype == torch.bool and not is_value:
        mask = first
        for _ in range(base.meta[PROBE][0].dim() - first.meta[PROBE][0].dim()):
            mask = edit.call(torch.unsqueeze, mask, -1)
        return edit.method("masked_fill", base, mask, value)
    if not is_value:
        value = edit.method("new_full", base, (), value)
    if not all(isinstance(i, fx.Node) or i == slice(None) for i in items) or not isinstance(items[0], fx.Node):
        return edit.call(index_put_slices, base, tuple(items), value)
    if any(i == slice(None) for i in items):
        return edit.call(index_put_slices, base, tuple(items), value)
    return edit.call(torch.index_put, base, tuple(items), value)


def index_put_slices(base: Tensor, index: tuple[Any, ...], value: Tensor) -> Tensor:
    """A copy of ``base`` after ``base[index] = value``, for indices that mix tensors with slices."""
    result = base.clone()
    result[index] = value
    return result
