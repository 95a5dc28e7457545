"""Find the neuron spaces of a program.

The graph is run once on meta tensors, under a dispatch mode that sees every aten operator, with a meaning attached to
every tensor (:mod:`fxfuse.passes.algebra`). All dimensions of parameters and persistent buffers start as free
variables, the inputs' and outputs' dimensions are pinned, and each operator's rule (:mod:`fxfuse.passes.axis_rules`)
relates what it must. The free variables that are left are the neuron spaces: permuting one of them in every parameter
that carries it leaves the function as it is, by construction.

An operator without a rule is tried through its decomposition into others; failing that it is *opaque*: everything
that it touches is pinned, and it is reported with the user's source line.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._decomp import decomposition_table
from torch.utils._python_dispatch import TorchDispatchMode

from fxfuse.errors import GraphError
from fxfuse.passes.algebra import (
    UNSET,
    Dims,
    Factor,
    Var,
    check_owners,
    expand,
    find,
    fresh,
    layout_of,
    leaves,
    owner,
    pin,
    settle,
    tidy,
)
from fxfuse.passes.axis_rules.core import Call, Meaning, Trace, rule_for, tensors_in
from fxfuse.types import Axes, Concat, Layout, Leaf, Opaque, Program, Space, TensorAxes

BATCH = 1009
"""The batch size of the abstract run: a prime that divides no width, so that a reshape cannot mistake it for one."""


class _Mode(TorchDispatchMode):
    """Attaches meanings to the outputs of every operator that runs while it is active."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace
        self.node = ""
        self.opaque: list[tuple[str, str, str]] = []

    def meaning(self, tensor: Tensor) -> Meaning:
        """What is known of ``tensor``; an unknown one holds values that depend on their index."""
        known: Meaning | None = getattr(tensor, "_fxfuse", None)
        if known is None:
            known = Meaning([fresh(n, pinned=True) for n in tensor.shape])
            self.attach(tensor, known)
        return known

    def attach(self, tensor: Tensor, meaning: Meaning) -> None:
        tensor._fxfuse = meaning  # type: ignore[attr-defined]  # tensors take attributes; this one lives as long

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = rule_for(func)
        if rule is None:
            return self._without_rule(func, args, kwargs)
        result = func(*args, **kwargs)
        outputs = [t for t in tensors_in(result)]
        if not outputs:
            return result
        call = Call(func, tuple(args), kwargs, result, self.meaning, self.trace)
        operands = [self.meaning(t) for t in call.tensors()]
        stored = bool(operands) and all(meaning.stored for meaning in operands)
        for meaning in operands:
            meaning.used = True
        dims = rule(call)
        per_output: list[Dims] = dims if isinstance(result, tuple | list) else [dims]  # type: ignore[list-item,assignment]  # a rule returns what its operator does
        for tensor, meant in zip(outputs, per_output, strict=False):
            self._checked(tensor, meant, stored, func)
        return result

    def _checked(self, tensor: Tensor, dims: Dims, stored: bool, func: Any) -> None:
        for size, dim in zip(tensor.shape, dims, strict=True):
            found = 1
            for factor in dim:
                found *= factor.var.size
            if size not in (found, 0):
                raise GraphError(f"the axis rule of {func} says {found} where the operator gives {size} (fxfuse bug)")
        if stored:
            self.trace.derived.append(dims)
        else:
            settle(dims)
            check_owners(dims)
        existing: Meaning | None = getattr(tensor, "_fxfuse", None)
        if existing is None or existing.node is None:
            self.attach(tensor, Meaning(dims, stored))

    def _without_rule(self, func: Any, args: Any, kwargs: Any) -> Any:
        with self:
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        if func in decomposition_table and not any(t.is_meta is False for t in tensors_in((args, kwargs))):
            with self:
                return decomposition_table[func](*args, **kwargs)
        operands = list(tensors_in((args, kwargs)))
        if any(self._alive(t) for t in operands):
            self.opaque.append((str(func), self.node, "no axis rule"))
        self.pin_all(operands)
        result = func(*args, **kwargs)
        for t in tensors_in(result):
            self.attach(t, Meaning([fresh(n, pinned=True) for n in t.shape]))
        return result

    def _alive(self, tensor: Tensor) -> bool:
        return any(not f.var.pinned for dim in self.meaning(tensor).dims for f in expand(dim))

    def pin_all(self, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            for dim in self.meaning(tensor).dims:
                pin(dim)


class _Abstract(fx.Interpreter):
    """Runs the graph node by node under the mode, on meta tensors."""

    def __init__(self, module: fx.GraphModule, mode: _Mode, shapes: "_Shapes") -> None:
        super().__init__(module, garbage_collect_values=False)
        self.mode = mode
        self.shapes = shapes
        self.values: dict[str, Dims] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.mode.node = n.name
        if n.op == "output":
            result = super().run_node(n)
            self.mode.pin_all(list(tensors_in(result)))
            return result
        try:
            result = super().run_node(n)
        except GraphError:
            raise
        except Exception as error:
            result = self._opaque(n, error)
        if isinstance(result, Tensor) and n.op != "get_attr":
            meaning = self.mode.meaning(result)
            if not meaning.stored:
                if meaning.node is None or meaning.node == n.name:
                    meaning.node = n.name
                else:  # the same tensor under two names (an identity): each node owns a record of its own
                    result = result.view_as(result)
                    self.mode.attach(result, Meaning(meaning.dims, False, n.name))
                self.values[n.name] = meaning.dims
        return result

    def _opaque(self, n: fx.Node, error: Exception) -> Any:
        operands = list(tensors_in(fx.node.map_arg((n.args, n.kwargs), lambda a: self.env[a])))
        if n.op == "call_module":
            operands += list(self.fetch_attr(str(n.target)).parameters())
        self.mode.pin_all(operands)
        target = n.target if isinstance(n.target, str) else getattr(n.target, "__name__", str(n.target))
        self.mode.opaque.append((str(target), n.name, str(error).splitlines()[0] if str(error) else "fails on meta"))
        return self.shapes.like(n.name)


class _Shapes:
    """Shapes of node values by a real run on the example, made only if some node needs them."""

    def __init__(self, program: Program, batch: int) -> None:
        self.program = program
        self.batch = batch
        self.found: dict[str, Any] | None = None

    def like(self, name: str) -> Any:
        """Meta tensors shaped like the node's value, for the abstract batch size."""
        if self.found is None:
            recorder = _Recorder(self.program.module)
            with torch.no_grad():
                recorder.run(*self.program.example)
            self.found = recorder.seen
        real = self.program.example[0].shape[0] if self.program.example[0].ndim else 0

        def meta(value: Any) -> Any:
            if isinstance(value, Tensor):
                shape = [self.batch if i == 0 and n == real else n for i, n in enumerate(value.shape)]
                return torch.empty(shape, dtype=value.dtype, device="meta")
            if isinstance(value, tuple | list):
                return type(value)(meta(v) for v in value)
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


def on_meta(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of the module whose parameters and buffers are meta tensors; nothing large is copied."""
    memo: dict[int, Any] = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    for node in module.graph.nodes:  # tensors that are plain attributes
        if node.op == "get_attr":
            value = _attribute(module, str(node.target))
            if isinstance(value, Tensor) and id(value) not in memo:
                memo[id(value)] = torch.empty_like(value, device="meta")
    return copy.deepcopy(module, memo)


def _attribute(module: nn.Module, path: str) -> Any:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value


def axes(program: Program, *, pinned: tuple[str, ...] = ()) -> Axes:
    """The neuron spaces of ``program``, what every dimension of its parameters and values means, and what is opaque.

    ``pinned`` names graph nodes whose value must keep its order (for a user who knows better).
    """
    state, values, mode = _interpret(program, pinned)
    stored = [meaning.dims for meaning in state.values()] + mode.trace.derived
    changed = True
    while changed:
        changed = any(tidy(dims) for dims in stored)
    for dims in stored:
        settle(dims)
    spaces, space_of = _spaces(state)
    reads = _reads(mode.trace, space_of)
    resolved = {
        name: TensorAxes(tuple(layout_of(d, space_of) for d in m.dims), frozenset(reads.get(_origin(m, name), ())))
        for name, m in state.items()
    }
    observed: dict[int, list[str]] = {}
    for factor, node in mode.trace.observed:
        for var in leaves([factor]):
            space = space_of.get(var)
            if space is not None and node not in observed.setdefault(space, []) and node in values:
                observed[space].append(node)
    order = {node.name: i for i, node in enumerate(program.module.graph.nodes)}
    return Axes(
        spaces=spaces,
        state=resolved,
        values=_values(values, space_of),
        observed={s: tuple(sorted(nodes, key=order.__getitem__)) for s, nodes in observed.items()},
        opaque=_opaque_report(program, mode),
    )


def _origin(meaning: Meaning, name: str) -> str:
    """The name under which a parameter's dimensions were born (tied parameters share one)."""
    for dim in meaning.dims:
        for factor in dim:
            if factor.origin is not None:
                return factor.origin[0]
    return name


def _interpret(program: Program, pinned: tuple[str, ...]) -> tuple[dict[str, Meaning], dict[str, Dims], _Mode]:
    for batch in (BATCH, program.example[0].shape[0] if program.example[0].ndim else 1):
        mode = _Mode(Trace())
        module = on_meta(program.module)
        state = _state(program.module, module, mode)
        inputs = []
        for example in program.example:
            shape = [batch if i == 0 else n for i, n in enumerate(example.shape)]
            inputs.append(torch.empty(shape, dtype=example.dtype, device="meta"))
        for tensor in inputs:
            mode.attach(tensor, Meaning([fresh(n, pinned=True) for n in tensor.shape]))
        interpreter = _Abstract(module, mode, _Shapes(program, batch))
        with torch.inference_mode(), mode:
            interpreter.run(*inputs)
        fixed = any("batch" in reason.lower() and "shape" in reason.lower() for _, _, reason in mode.opaque)
        if not mode.opaque or not fixed:
            break
    for name in pinned:
        for dim in interpreter.values.get(name, []):
            pin(dim)
    return state, interpreter.values, mode


def _state(module: nn.Module, meta: nn.Module, mode: _Mode) -> dict[str, Meaning]:
    """Free variables for everything that a state dict holds, pinned ones for what it does not."""
    persistent = set(module.state_dict())
    out: dict[str, Meaning] = {}
    seen: dict[int, Meaning] = {}
    named = [*meta.named_parameters(remove_duplicate=False), *meta.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        if id(tensor) not in seen:
            free = name in persistent and (tensor.is_floating_point() or tensor.is_complex())
            dims: Dims = [
                [] if n == 1 else [Factor(Var(n, pinned=not free, outer=UNSET), (name, i))]
                for i, n in enumerate(tensor.shape)
            ]
            seen[id(tensor)] = Meaning(dims, stored=free)
            mode.attach(tensor, seen[id(tensor)])
        if name in persistent:
            out[name] = seen[id(tensor)]
    return out


def _spaces(state: Mapping[str, Meaning]) -> tuple[tuple[Space, ...], dict[Var, int]]:
    """Number the free variables in the order of the parameters that carry them, owners before what they own."""
    names: dict[Var, str] = {}
    for name, meaning in state.items():
        for i, dim in enumerate(meaning.dims if meaning.used else ()):
            for var in leaves(dim):
                if not var.pinned and var.size > 1:
                    names.setdefault(var, f"{name}:{i}")
    ordered: list[Var] = []
    for var in names:
        outer = owner(var)
        if outer is not None and outer in names and outer not in ordered:
            ordered.append(outer)
        if var not in ordered:
            ordered.append(var)
    number = {var: i for i, var in enumerate(ordered)}
    spaces = []
    taken: dict[str, int] = {}
    for var in ordered:
        outer = owner(var)
        label = names[var]
        taken[label] = taken.get(label, 0) + 1
        suffix = "" if taken[label] == 1 else f"#{taken[label]}"
        spaces.append(Space(number[var], var.size, label + suffix, None if outer is None else number.get(outer)))
    return tuple(spaces), number


def _reads(trace: Trace, space_of: Mapping[Var, int]) -> dict[str, set[tuple[int, int]]]:
    out: dict[str, set[tuple[int, int]]] = {}
    for (name, dim), factor in trace.reads:
        for var in leaves([factor]):
            space = space_of.get(find(var))
            if space is not None:
                out.setdefault(name, set()).add((dim, space))
    return out


def _values(values: Mapping[str, Dims], space_of: dict[Var, int]) -> dict[str, TensorAxes]:
    """Resolved meanings of node values; those that cannot be told dimension by dimension are left out."""
    out: dict[str, TensorAxes] = {}
    for name, dims in values.items():
        layouts = tuple(layout_of(dim, space_of) for dim in dims)
        if not _tangled(dims):
            out[name] = TensorAxes(layouts)
    return out


def _tangled(dims: Dims) -> bool:
    """A family whose owner lies in another dimension (a packed projection before it is taken apart)."""
    for dim in dims:
        factors = [factor.var for factor in expand(dim)]
        for index, var in enumerate(factors):
            outer = owner(var)
            if (outer is not None and outer.segments is not None and outer not in factors[:index]) or (
                outer is None and var.family
            ):
                return True
    return False


def _opaque_report(program: Program, mode: _Mode) -> tuple[Opaque, ...]:
    where = {node.name: str(node.meta.get("where", "")) for node in program.module.graph.nodes}
    found = dict.fromkeys(mode.opaque)
    return tuple(Opaque(op, node, where.get(node, ""), reason) for op, node, reason in found)


def free_leaves(layout: Layout) -> list[Leaf]:
    """The leaves of a layout that are neurons, from left to right."""
    if isinstance(layout, Leaf):
        return [layout] if layout.space is not None else []
    return [leaf for part in layout.parts for leaf in free_leaves(part)]


__all__ = ["BATCH", "Concat", "axes", "free_leaves", "on_meta"]
