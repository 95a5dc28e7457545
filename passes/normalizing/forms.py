"""One spelling per operation, whatever the user wrote and whichever front end read it.

Arithmetic is ``operator.*``; what exists as a function of ``torch`` or ``torch.nn.functional`` is that function; sizes
are read by the method ``size(dim)``; every re-bracketing is ``torch.reshape`` or ``torch.flatten``.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxfuse.passes.probing import PROBE, Editor

_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "subtract": operator.sub,
    "mul": operator.mul,
    "multiply": operator.mul,
    "div": operator.truediv,
    "divide": operator.truediv,
    "true_divide": operator.truediv,
    "floor_divide": operator.floordiv,
    "neg": operator.neg,
    "negative": operator.neg,
    "matmul": torch.matmul,
    "pow": operator.pow,
}

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softmax": F.softmax,
    "log_softmax": F.log_softmax,
    "view": torch.reshape,
    "flatten": torch.flatten,
    "concat": torch.cat,
    "concatenate": torch.cat,
    "swapaxes": torch.transpose,
    "swapdims": torch.transpose,
    "movedim": torch.movedim,
    "moveaxis": torch.movedim,
    "absolute": torch.abs,
    "clip": torch.clamp,
}

_VARIADIC = frozenset({"reshape", "view", "permute", "expand", "repeat", "tile"})

_SECOND = {"where": "condition", "polygamma": "n"}
"""Methods whose tensor is the second argument of the function, and the name of the first."""

_SAME = {operator.matmul: torch.matmul, F.sigmoid: torch.sigmoid, F.tanh: torch.tanh, torch.relu: F.relu}


def unify_forms(module: fx.GraphModule) -> int:
    """Give every operation its one spelling."""
    edit = Editor(module)
    changes = 0
    for node in list(module.graph.nodes):
        if node.op == "call_method":
            changes += _method(edit, node)
        elif node.op == "call_function":
            changes += _function(edit, node)
    return changes


def _set(node: fx.Node, target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> int:
    node.op, node.target, node.args = "call_function", target, args
    node.kwargs = kwargs or {}
    return 1


def _is_tensor(arg: Any) -> bool:
    return isinstance(arg, fx.Node) and isinstance(arg.meta[PROBE][0], Tensor)


def _method(edit: Editor, node: fx.Node) -> int:
    name = str(node.target)
    if not node.args or not _is_tensor(node.args[0]):
        return 0
    args, kwargs = node.args, dict(node.kwargs)
    if name in _VARIADIC:
        args = (args[0], _sizes(args[1:], kwargs))
        kwargs = {}
        if name == "view" and isinstance(args[1], torch.dtype):
            return 0
        if name in {"expand", "repeat"}:
            changed = node.args != args
            node.args, node.kwargs = args, {}
            return int(changed)
        if name == "tile":
            return 0
    if name == "flip":
        return _set(node, torch.flip, (args[0], _sizes(args[1:], kwargs)))
    if name in {"view_as", "reshape_as"}:
        other = args[1]
        with edit.at(node):
            sizes = tuple(edit.size(other, i) for i in range(other.meta[PROBE][0].dim()))  # type: ignore[arg-type,union-attr]
        return _set(node, torch.reshape, (args[0], sizes))
    if name == "expand_as":
        return 0
    if name in _ARITHMETIC and len(args) <= 2 and not kwargs:
        return _set(node, _ARITHMETIC[name], args)
    if name in _SECOND:
        first = args[1] if len(args) > 1 else kwargs.pop(_SECOND[name])
        return _set(node, getattr(torch, name), (first, args[0], *args[2:]), kwargs)
    target: Any = _FUNCTIONS.get(name) or getattr(torch, name, None)
    if name in _FUNCTIONS or (_is_function(target) and name not in {"unfold", "norm", "to", "type", "split", "unique"}):
        assert callable(target)
        return _set(node, target, args, kwargs)
    if name == "split" and "split_size" in kwargs:  # the method's name for it
        kwargs["split_size_or_sections"] = kwargs.pop("split_size")
    if name in {"split", "norm"}:
        return _set(node, getattr(torch, name), args, kwargs)
    return 0


def _sizes(rest: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not rest:
        rest = tuple(kwargs.values())
    if len(rest) == 1 and isinstance(rest[0], tuple | list | torch.Size):
        return tuple(rest[0])
    if len(rest) == 1 and isinstance(rest[0], torch.dtype):
        return rest[0]
    if len(rest) == 1 and isinstance(rest[0], fx.Node) and not isinstance(rest[0].meta[PROBE][0], int):
        return rest[0]
    return tuple(rest)


def _is_function(target: Any) -> bool:
    return target is not None and callable(target) and not isinstance(target, type)


def _function(edit: Editor, node: fx.Node) -> int:
    target: Any = node.target
    if target in _SAME:
        same: Any = _SAME[target]
        return _set(node, same, node.args, dict(node.kwargs))
    if target is getattr:
        return _attribute(edit, node)
    name = getattr(target, "__name__", "")
    owned = getattr(torch, name, None) is target or getattr(F, name, None) is target
    if owned and name in _ARITHMETIC and set(node.kwargs) <= {"other"} and len(node.args) + len(node.kwargs) <= 2:
        return _set(node, _ARITHMETIC[name], (*node.args, *node.kwargs.values()))
    if owned and name in {"softmax", "log_softmax"} and target is not _FUNCTIONS[name]:
        return _set(node, _FUNCTIONS[name], node.args, dict(node.kwargs))
    if target is torch.rsub:
        return _set(node, operator.sub, (node.args[1], node.args[0]))
    if target in {F.softmax, F.log_softmax} and "_stacklevel" in node.kwargs:
        node.kwargs = {k: v for k, v in node.kwargs.items() if k != "_stacklevel"}
        return 1
    if target is operator.getitem and _is_tensor(node.args[0]):
        return _index(node)
    if owned and name in {"concat", "concatenate"}:
        return _set(node, torch.cat, node.args, dict(node.kwargs))
    if target is operator.add and any(isinstance(a, tuple | list) for a in node.args):
        return 0
    return 0


def _attribute(edit: Editor, node: fx.Node) -> int:
    source, name = node.args
    if not _is_tensor(source):
        return 0
    assert isinstance(source, fx.Node)
    rank = source.meta[PROBE][0].dim()
    if name in {"T", "mT"} and rank >= 2:
        dims = (-2, -1) if name == "mT" else (0, 1)
        return _set(node, torch.transpose, (source, *dims)) if name == "mT" or rank == 2 else 0
    del edit
    return 0


def _index(node: fx.Node) -> int:
    """``x[:, 0]`` as a tuple without trailing full slices."""
    index = node.args[1]
    if not isinstance(index, tuple):
        node.args = (node.args[0], (index,))
        return 1
    items = list(index)
    if len(items) > 1 and items[-1] is Ellipsis:
        items.pop()
    while len(items) > 1 and Ellipsis not in items and isinstance(items[-1], slice) and items[-1] == slice(None):
        items.pop()
    if len(items) == len(index):
        return 0
    node.args = (node.args[0], tuple(items))
    return 1


_DROPOUT = frozenset(
    {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout}
)
_CHECKS = frozenset({torch._assert})
_NO_OP_METHODS = frozenset({"contiguous", "detach", "requires_grad_", "clone", "cpu_", "data"})
_ASKS_STRIDES = frozenset({"view_as_complex", "kron", "as_strided"})
"""Operators that look at how the numbers of their operand lie in memory: a copy that lays them out is none too many."""


def drop_identities(module: fx.GraphModule) -> int:
    """Drop dropout, copies that nothing can tell from their source, casts to the same type, checks and guards."""
    changes = 0
    laid_out = _laid_out(module.graph)
    for node in list(module.graph.nodes):
        if _is_check(module, node):
            if not node.users:
                module.graph.erase_node(node)
                changes += 1
        elif node not in laid_out and _is_identity(node):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
            changes += 1
    return changes


def _laid_out(graph: fx.Graph) -> set[fx.Node]:
    """The copies whose layout in memory an operator further on may ask for."""
    before: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        asks = str(getattr(node.target, "__name__", node.target)).split(".")[0] in _ASKS_STRIDES
        retyped = node.target == "view"  # with a type: with sizes it is a reshape
        if asks or retyped or node in before:
            before.update(node.all_input_nodes)
    copies = {"contiguous", "clone", torch.clone}
    return {node for node in before if node.target in copies}


def _is_check(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))).__name__ == "GuardsFn"
    name = str(node.target)
    return node.op == "call_function" and (node.target in _CHECKS or "_assert" in name or "sym_constrain" in name)


def _is_identity(node: fx.Node) -> bool:
    if node.op not in {"call_function", "call_method"} or not node.args or not _is_tensor(node.args[0]):
        return False
    target: Any = node.target
    if target in _DROPOUT or target in {torch.clone, torch.detach}:
        return True
    if node.op == "call_method" and target in _NO_OP_METHODS:
        return True
    source, result = node.args[0].meta[PROBE], node.meta[PROBE]  # type: ignore[union-attr]
    if not isinstance(result[0], Tensor):
        return False
    same = all(s.shape == r.shape and s.dtype == r.dtype for s, r in zip(source, result, strict=True))
    if not same:
        return False
    if node.op == "call_method" and target in {"to", "type_as", "float", "type", "double", "half", "bfloat16"}:
        return True
    if node.op == "call_method" and target in {"cpu", "cuda"}:  # a graph lives on one device
        return True
    if target in {torch.reshape, torch.squeeze, torch.unsqueeze, torch.flatten} or target in {"expand", "expand_as"}:
        return True
    if target is operator.getitem:
        return all((isinstance(i, slice) and (i.step or 1) == 1) or i is Ellipsis for i in node.args[1])  # type: ignore[union-attr]
    if target in {F.pad, torch.constant_pad_nd, torch.roll}:
        return _all_zero(node.args[1] if len(node.args) > 1 else next(iter(node.kwargs.values())))
    if target is torch.permute:
        return list(node.args[1]) == list(range(len(node.args[1])))  # type: ignore[arg-type]
    return (
        target in {operator.mul, operator.truediv}
        and node.args[1] in (1, 1.0)
        and not isinstance(node.args[1], fx.Node)
    )


def _all_zero(numbers: Any) -> bool:
    numbers = numbers if isinstance(numbers, tuple | list) else [numbers]
    return all((n.meta[PROBE][0] if isinstance(n, fx.Node) else n) == 0 for n in numbers)


def drop_dead(module: fx.GraphModule) -> int:
    """Drop nodes whose values nobody reads; placeholders stay."""
    changes = 0
    for node in reversed(module.graph.nodes):
        if not node.users and node.op not in {"placeholder", "output"}:
            module.graph.erase_node(node)
            changes += 1
    return changes
