"""Run a graph on meta tensors with a meaning attached to every tensor.

A dispatch mode sees every aten operator, whatever Python spelling it came from, and hands it to its rule. An operator
without one is tried through its decomposition into others; failing that it is *opaque*, and so is a node whose code
cannot run without data: everything that it touches is pinned, and what comes out is pinned.
"""

import copy
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._decomp import decomposition_table
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from fxfuse.errors import GraphError
from fxfuse.label_space import class_axis
from fxfuse.passes.algebra import check_owners
from fxfuse.passes.axis_rules.core import (
    FOLLOWING,
    Call,
    Meaning,
    Trace,
    disown_but,
    moves,
    rule_for,
    similar_rule,
    tensors_in,
)
from fxfuse.passes.axis_rules.ties import NONE, SOME, first_of_equals, ties
from fxfuse.passes.graphs import attribute, target_name
from fxfuse.passes.normalizing.constants import reads_shape_only
from fxfuse.passes.variables import Dims, expand, fresh, pin, settle, size_of
from fxfuse.types import Program


class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Attaches meanings to the outputs of every operator that runs while it is active.

    ``node`` is the graph node at work; ``silent`` where nothing but the shape of its value is read, so that what it
    does says nothing; ``opaque`` lists (operator, node, reason) without repetition.
    """

    def __init__(self, trace: Trace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.trace = trace
        self.node = ""
        self.silent = False
        self.opaque: dict[tuple[str, str], str] = {}
        self.shapes: dict[Any, tuple[bool, list[tuple[tuple[int, ...], tuple[int, ...], torch.dtype]]]] = {}

    def meaning(self, tensor: Tensor) -> Meaning:
        """What is known of ``tensor``; an unknown one holds values that depend on their index."""
        known: Meaning | None = getattr(tensor, "_fxfuse", None)
        if known is None:
            known = Meaning([fresh(n, pinned=True) for n in tensor.shape])
            self.attach(tensor, known)
        return known

    def attach(self, tensor: Tensor, meaning: Meaning) -> None:
        """Say what ``tensor`` means, for as long as it lives."""
        tensor._fxfuse = meaning  # type: ignore[attr-defined]  # tensors take attributes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = _without_device(func, args, kwargs or {})
        if self.silent:
            return func(*args, **kwargs)
        rule = rule_for(func)
        if rule is None:
            return self._without_rule(func, args, kwargs)
        result = self._result(func, args, kwargs)
        outputs = list(tensors_in(result))
        if not outputs:
            return result
        call = Call(func, tuple(args), kwargs, result, self.meaning, self.trace)
        operands = [self.meaning(t) for t in call.tensors()]
        stored = bool(operands) and all(meaning.stored for meaning in operands)
        moved = self._read(call)
        dims = rule(call)
        per_output: list[Dims] = dims if isinstance(result, tuple | list) else [dims]  # type: ignore[list-item,assignment]  # a rule returns what its operator does
        equal = ties(call, self._ties, per_output[0])
        first = first_of_equals(call, max(map(self._ties, call.tensors()), default=NONE))
        for k, (tensor, meant) in enumerate(zip(outputs, per_output, strict=False)):
            self._checked(tensor, meant, stored, func)
            points = call.points.get(k, moved)
            if first and k in call.points:  # a matter of order: nobody can follow positions in two dimensions
                points = [*points, *points]
            self.meaning(tensor).points, self.meaning(tensor).ties = points, equal
        return result

    def _read(self, call: Call) -> Dims:
        """An operator reads its operands, except for positions that it follows and those that it only moves: what these
        point into is returned. Whoever moves them may bring them to another index of an owner, which disowns it."""
        name = call.function._schema.name
        index = call.named(FOLLOWING[name]) if name in FOLLOWING else None
        if isinstance(index, list | tuple):  # one for each dimension: positions are followed where they stand alone
            index, *others = [t for t in index if t is not None] or [None]
            index = None if others else index
        tensors = call.tensors()
        if moves(call):
            index = call.args[0]
        for tensor in tensors:
            if tensor is index and sum(t is index for t in tensors) == 1:
                self.meaning(tensor).used = True
            else:
                self.meaning(tensor).read()
        if not moves(call):
            return []
        points = self.meaning(call.args[0]).points
        for dim in points:
            disown_but(dim, ())
        return points

    def _ties(self, tensor: Tensor) -> int:
        return self.meaning(tensor).ties if tensor.is_floating_point() or tensor.is_complex() else SOME

    def _result(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What the operator gives; meta kernels are slow, so equal calls share the shape of their outputs. Views are
        quick, and what they look at keeps account of them."""
        if func._schema.name in _WITHOUT_META:  # a value like the first operand, and which elements were clamped
            value = torch.empty_like(args[0])
            return (value, torch.empty_like(value, dtype=torch.bool)) if len(func._schema.returns) > 1 else value
        if func._schema.is_mutable or any(output.alias_info is not None for output in func._schema.returns):
            return func(*args, **kwargs)
        try:
            key = (func, _signature(args), _signature(kwargs))
            known = self.shapes.get(key)
        except TypeError:  # an argument that cannot be hashed
            return func(*args, **kwargs)
        if known is None:
            result = func(*args, **kwargs)
            several = isinstance(result, tuple | list)
            outputs = list(result) if several else [result]
            if all(isinstance(t, Tensor) and t.is_meta for t in outputs):
                self.shapes[key] = several, [(tuple(t.shape), t.stride(), t.dtype) for t in outputs]
            return result
        several, like = known
        made = [torch.empty_strided(shape, stride, dtype=dtype, device="meta") for shape, stride, dtype in like]
        return tuple(made) if several else made[0]

    def _checked(self, tensor: Tensor, dims: Dims, stored: bool, func: Any) -> None:
        given = len(dims) if isinstance(dims, list | tuple) else 0
        if given != tensor.ndim:
            raise GraphError(
                f"The axis rule of {func} at {self.node} gives {given} dimensions where the operator's result has "
                f"{tensor.ndim}; correct the rule"
            )
        for size, dim in zip(tensor.shape, dims, strict=True):
            if size not in (size_of(dim), 0):
                raise GraphError(
                    f"The axis rule of {func} at {self.node} gives a dimension {size_of(dim)} indices where the "
                    f"operator gives {size}; correct the rule"
                )
        if stored:
            self.trace.derived.append(dims)
        else:
            settle(dims)
            check_owners(dims)
        existing: Meaning | None = getattr(tensor, "_fxfuse", None)  # an operator that wrote in place
        self.attach(tensor, Meaning(dims, stored, None if existing is None else existing.node))

    def _without_rule(self, func: Any, args: Any, kwargs: Any) -> Any:
        with self:
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        if func in decomposition_table and all(t.is_meta for t in tensors_in((args, kwargs))):
            with self:
                return decomposition_table[func](*args, **kwargs)
        similar = similar_rule(func._schema.name)
        hint = f"; there is one for {similar!r}" if similar else ""
        self.give_up(str(func).removesuffix(".default"), list(tensors_in((args, kwargs))), f"it has no axis rule{hint}")
        result = func(*args, **kwargs)
        for t in tensors_in(result):
            self.attach(t, Meaning([fresh(n, pinned=True) for n in t.shape]))
        return result

    def give_up(self, operator: str, operands: list[Tensor], reason: str) -> None:
        """Pin all that an operator touches, and say so if that cost anything and the node has not been named yet."""
        costs = any(not f.var.pinned for t in operands for dim in self.meaning(t).dims for f in expand(dim))
        if costs and not any(node == self.node and name == operator for name, node in self.opaque):
            self.opaque[operator, self.node] = reason
        self.pin_all(operands)

    def pin_all(self, tensors: list[Tensor]) -> None:
        """Only the identity is left along every dimension of ``tensors``."""
        for tensor in tensors:
            self.meaning(tensor).read()
            for dim in self.meaning(tensor).dims:
                pin(dim)


_META = torch.device("meta")
_WITHOUT_META = frozenset(
    f"aten::{name}"
    for name in (
        "fake_quantize_per_tensor_affine",
        "fake_quantize_per_channel_affine",
        "fake_quantize_per_tensor_affine_cachemask",
        "fake_quantize_per_channel_affine_cachemask",
        "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
        "_fake_quantize_learnable_per_tensor_affine",
        "_fake_quantize_learnable_per_channel_affine",
    )
)
"""Operators that torch cannot run on meta tensors."""


def _without_device(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """An operator's arguments with the meta device in place of any other, given or left to its default: tensors that
    the code makes or moves meet those that hold no data."""
    args = tuple([_META if isinstance(a, torch.device) else a for a in args])
    made = not any(True for _ in tensors_in(args)) and any(a.name == "device" for a in func._schema.arguments)
    if made or kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": _META}
    return args, kwargs


def _signature(tree: Any) -> Any:
    """All of an operator's arguments that the shape of its result depends on, as a key."""
    if isinstance(tree, Tensor):
        return tree.shape, tree.stride(), tree.dtype, tree.device
    if isinstance(tree, tuple | list):
        return tuple([_signature(item) for item in tree])
    if isinstance(tree, dict):
        return tuple([(key, _signature(item)) for key, item in tree.items()])
    return type(tree), tree


class Interpreter(fx.Interpreter):
    """Runs the graph node by node under the mode, on meta tensors; ``failed`` counts nodes that could not run.

    Outputs keep their order, except for the class axis of outputs with ``classes`` classes, where that is given.
    """

    def __init__(self, module: fx.GraphModule, mode: Mode, shapes: "Shapes", classes: int | None = None) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.classes = classes
        self.mode = mode
        self.shapes = shapes
        self.values: dict[str, Dims] = {}
        self.constant: dict[str, Dims] = {}
        """Values that parameters alone make: no batch, but neurons all the same."""
        self.failed = 0
        self.unread = shape_only(module.graph)

    def run_node(self, n: fx.Node) -> Any:
        """One node; a failure makes it opaque."""
        self.mode.node, self.mode.silent = n.name, n in self.unread
        if n.op == "output":
            result = super().run_node(n)
            for tensor in tensors_in(result):
                axis = class_axis(tensor.shape) if tensor.is_floating_point() else None
                free = axis is not None and tensor.shape[axis] == self.classes
                self.mode.meaning(tensor).read()
                for i, dim in enumerate(self.mode.meaning(tensor).dims):
                    if not (free and i == axis):
                        pin(dim)
            return result
        try:
            result = super().run_node(n)
        except GraphError:
            raise
        except Exception as error:  # whatever a rule or an operator raises: its neurons stay as they are
            result = self._opaque(n, error)
        if isinstance(result, Tensor) and (n.op != "get_attr" or self.mode.meaning(result).stored):
            result = self._named(result, n.name)
        return result

    def _named(self, result: Tensor, name: str) -> Tensor:
        meaning = self.mode.meaning(result)
        if meaning.stored:
            if meaning.node is None:
                meaning.node = name
                self.constant[name] = meaning.dims
            return result
        if meaning.node is None or meaning.node == name:
            meaning.node = name
        else:  # the same tensor under two names (an identity): each node owns a record of its own
            dims = meaning.dims
            result = result.view(result.shape)
            self.mode.attach(result, Meaning(dims, False, name, points=meaning.points, ties=meaning.ties))
        if result.is_floating_point():  # others cannot be compared
            self.values[name] = meaning.dims
        return result

    def _opaque(self, n: fx.Node, error: Exception) -> Any:
        self.failed += 1
        operands = list(tensors_in(fx.node.map_arg((n.args, n.kwargs), lambda a: self.env[a])))
        if n.op == "call_module":
            module = self.fetch_attr(str(n.target))
            operands += [*module.parameters(), *module.buffers()]
        named = any(node == n.name for _, node in self.mode.opaque)  # its operator has been named already
        lines = str(error).strip().splitlines()
        reason = f"it cannot be followed without data: {lines[0]}" if lines else "it cannot be followed without data"
        if named:
            self.mode.pin_all(operands)
        else:
            self.mode.give_up(target_name(n), operands, reason)
        result = self.shapes.like(n.name)
        for t in tensors_in(result):
            self.mode.attach(t, Meaning([fresh(size, pinned=True) for size in t.shape]))
        return result


def shape_only(graph: fx.Graph) -> set[fx.Node]:
    """The nodes of whose values nobody reads more than the shape: ``torch.ones_like(x[:, :1])`` cuts nothing."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        writes = node.target is operator.setitem or str(getattr(node.target, "__name__", node.target)).endswith("_")
        if writes or not node.users or node.op not in {"call_function", "call_method"}:
            continue
        if all(user in found or (user.args[:1] == (node,) and _asks_shape(user, node)) for user in node.users):
            found.add(node)
    return found


def _asks_shape(user: fx.Node, node: fx.Node) -> bool:
    return user.target is not getattr and user.all_input_nodes.count(node) == 1 and reads_shape_only(user)


@dataclass(slots=True)
class Shapes:
    """Shapes of node values by a real run on the example, made only if some node needs them."""

    program: Program
    batch: int
    found: dict[str, Any] | None = None

    def like(self, name: str) -> Any:
        """Meta tensors shaped like the node's value, for the abstract batch size."""
        if self.found is None:
            recorder = _Recorder(self.program.module)
            with torch.no_grad(), _disable_current_modes():
                recorder.run(*self.program.example)
            self.found = recorder.seen
        real = batch_of(self.program)

        def meta(value: Any) -> Any:
            if isinstance(value, Tensor):
                shape = [self.batch if i == 0 and n == real else n for i, n in enumerate(value.shape)]
                return torch.empty(shape, dtype=value.dtype, device="meta")
            if isinstance(value, dict):
                return {key: meta(v) for key, v in value.items()}
            if isinstance(value, tuple | list):
                parts = [meta(v) for v in value]
                return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
            return value

        return meta(self.found[name])


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.seen[n.name] = result
        return result


def batch_of(program: Program) -> int:
    """The batch size of the example: the first dimension of its first tensor."""
    first = program.example[0]
    return first.shape[0] if first.ndim else 1


def on_meta(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of the module whose parameters and buffers are meta tensors; nothing large is copied."""
    memo: dict[int, Any] = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    for node in module.graph.nodes:  # tensors that are plain attributes
        if node.op == "get_attr":
            value = attribute(module, str(node.target))
            if isinstance(value, Tensor) and id(value) not in memo:
                memo[id(value)] = torch.empty_like(value, device="meta")
    return copy.deepcopy(module, memo)
