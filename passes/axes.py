"""Find the neuron spaces of a program.

The graph is run once on meta tensors (:mod:`fxfuse.passes.abstract`), with a meaning attached to every tensor
(:mod:`fxfuse.passes.algebra`). All dimensions of parameters and persistent buffers start as free variables, the inputs'
and outputs' dimensions are pinned, and each operator's rule (:mod:`fxfuse.passes.axis_rules`) relates what it must. The
free variables that are left are the neuron spaces: permuting one of them in every parameter that carries it leaves the
function as it is, by construction.
"""

from collections.abc import Mapping

import torch
from torch import nn

from fxfuse.passes.abstract import Interpreter, Mode, Shapes, batch_of, on_meta
from fxfuse.passes.axis_rules.core import Meaning, Trace
from fxfuse.passes.constant_axes import constant_dims
from fxfuse.passes.resolution import layout_of, leaves, tidy
from fxfuse.passes.variables import UNSET, Dims, Factor, Var, expand, find, fresh, inside, owner, pin, settle
from fxfuse.types import Axes, Layout, Leaf, Opaque, Program, Space, TensorAxes

BATCH = 1009
"""The batch size of the abstract run: a prime that divides no width, so that a reshape cannot mistake it for one."""


def axes(program: Program, *, pinned: tuple[str, ...] = (), classes: int | None = None) -> Axes:
    """The neuron spaces of ``program``, what every dimension of its parameters and values means, and what is opaque.

    ``pinned`` names graph nodes whose value must keep its order (for a user who knows better). Outputs keep theirs, but
    with ``classes`` the class axis of every output of that many classes is a neuron space like others: it may be given
    another order and another number of classes.
    """
    state, values, mode, batch = _interpret(program, pinned, classes)
    stored = [meaning.dims for meaning in state.values()] + mode.trace.derived
    _pin_tables(program.module, state, mode.trace)
    while sum([_settled(dims) for dims in stored]):
        pass
    spaces, space_of = _spaces(state)
    reads = _reads(mode.trace, space_of)
    resolved = {
        name: TensorAxes(tuple(layout_of(d, space_of) for d in m.dims), frozenset(reads.get(_origin(m, name), ())))
        for name, m in state.items()
    }
    order = {node.name: i for i, node in enumerate(program.module.graph.nodes)}
    return Axes(
        spaces=spaces,
        state=resolved,
        values=_values(values, space_of, {batch: batch_of(program)}),
        observed={s: tuple(sorted(nodes, key=order.__getitem__)) for s, nodes in _observed(mode, values, space_of)},
        opaque=_opaque_report(program, mode),
    )


def _settled(dims: Dims) -> bool:
    """Give up what layouts cannot say about one stored tensor; whether that changed anything."""
    changed = False
    while tidy(dims):
        changed = True
    settle(dims)
    return changed


def _observed(mode: Mode, values: Mapping[str, Dims], space_of: Mapping[Var, int]) -> list[tuple[int, list[str]]]:
    """For each space the nodes on whose values it is summed over."""
    found: dict[int, dict[str, None]] = {}
    seen: set[tuple[Var, str]] = set()
    for factor, node in mode.trace.observed:
        if node not in values or (find(factor.var), node) in seen:
            continue
        seen.add((find(factor.var), node))
        for var in leaves([factor]):
            space = space_of.get(var)
            if space is not None:
                found.setdefault(space, {})[node] = None
    return [(space, list(nodes)) for space, nodes in found.items()]


def _origin(meaning: Meaning, name: str) -> str:
    """The name under which a parameter's dimensions were born (tied parameters share one)."""
    for dim in meaning.dims:
        for factor in dim:
            if factor.origin is not None:
                return factor.origin[0]
    return name


def _interpret(
    program: Program, pinned: tuple[str, ...], classes: int | None
) -> tuple[dict[str, Meaning], dict[str, Dims], Mode, int]:
    """Run the graph at a batch size that nothing else has; where nodes cannot run at it, at the example's own."""
    runs = []
    for batch in (BATCH, batch_of(program)):
        mode = Mode(Trace())
        module = on_meta(program.module)
        state = _state(program.module, module, mode)
        interpreter = Interpreter(module, mode, Shapes(program, batch), classes)
        with torch.inference_mode():
            inputs = []
            for example in program.example:
                own_batch = example.shape[:1] == program.example[0].shape[:1]
                shape = [batch if i == 0 and own_batch else n for i, n in enumerate(example.shape)]
                inputs.append(torch.empty(shape, dtype=example.dtype, device="meta"))
                mode.attach(inputs[-1], Meaning([fresh(n, pinned=True) for n in shape]))
            with mode:
                interpreter.run(*inputs)
        observed = {node for _, node in mode.trace.observed}
        values = {n: dims for n, dims in interpreter.constant.items() if n in observed} | interpreter.values
        runs.append((interpreter.failed, state, values, mode, batch))
        if not interpreter.failed:
            break
    _, state, values, mode, batch = min(runs, key=lambda run: run[0])
    for name in pinned:
        for dim in values.get(name, []):
            pin(dim)
    return state, values, mode, batch


def _state(module: nn.Module, meta: nn.Module, mode: Mode) -> dict[str, Meaning]:
    """Free variables for everything that a state dict holds, pinned ones for what it does not."""
    persistent = set(module.state_dict())
    out: dict[str, Meaning] = {}
    seen: dict[int, Meaning] = {}
    named = [*meta.named_parameters(remove_duplicate=False), *meta.named_buffers(remove_duplicate=False)]
    constants = {n: x for n, x in module.named_buffers(remove_duplicate=False) if n not in persistent}
    for name, tensor in named:
        if id(tensor) not in seen:
            free = name in persistent and (tensor.is_floating_point() or tensor.is_complex())
            dims: Dims = [
                [] if n == 1 else [Factor(Var(n, pinned=not free, outer=UNSET), (name, i))]
                for i, n in enumerate(tensor.shape)
            ]
            if name in constants:
                dims = constant_dims(constants[name])
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
    ordered: dict[Var, None] = {}
    for var in names:
        outer = owner(var)
        if outer is not None and outer in names:
            ordered.setdefault(outer)
        ordered.setdefault(var)
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


def _pin_tables(module: nn.Module, state: Mapping[str, Meaning], trace: Trace) -> None:
    """Pin what buffers alone write (a saved table of coordinates): all parents have it, and in one order."""
    reads = {(origin, find(var)) for origin, factor in trace.reads for var in leaves([factor])}
    trained = dict(module.named_parameters(remove_duplicate=False))
    by_table: set[Var] = set()
    by_parameter: set[Var] = set()
    for name, meaning in state.items():
        for i, dim in enumerate(meaning.dims if meaning.used else ()):
            for var in leaves(dim):
                if name not in trained:
                    by_table.add(find(var))
                elif ((_origin(meaning, name), i), find(var)) not in reads:
                    by_parameter.add(find(var))
    for var in by_table - by_parameter:
        pin([Factor(var)])


def _reads(trace: Trace, space_of: Mapping[Var, int]) -> dict[str, set[tuple[int, int]]]:
    out: dict[str, set[tuple[int, int]]] = {}
    for (name, dim), factor in trace.reads:
        for var in leaves([factor]):
            space = space_of.get(find(var))
            if space is not None:
                out.setdefault(name, set()).add((dim, space))
    return out


def _values(values: Mapping[str, Dims], space_of: dict[Var, int], sizes: Mapping[int, int]) -> dict[str, TensorAxes]:
    """Resolved meanings of node values; those that cannot be told dimension by dimension are left out. ``sizes`` says
    what the abstract batch size stands for."""
    out: dict[str, TensorAxes] = {}
    for name, dims in values.items():
        if not _tangled(dims):
            out[name] = TensorAxes(tuple(_at_batch(layout_of(dim, space_of), sizes) for dim in dims))
    return out


def _at_batch(layout: Layout, sizes: Mapping[int, int]) -> Layout:
    if isinstance(layout, Leaf):
        for abstract, real in sizes.items():
            if layout.space is None and abstract != real and layout.size % abstract == 0:
                return Leaf(layout.size // abstract * real)
        return layout
    parts = tuple(_at_batch(part, sizes) for part in layout.parts)
    return layout if parts == layout.parts else type(layout)(parts)


def _tangled(dims: Dims) -> bool:
    """A family whose owner lies in another dimension (a packed projection before it is taken apart)."""
    for dim in dims:
        before: list[Var] = []
        for factor in expand(dim):
            for var in inside([factor]):
                outer = owner(var)
                apart = outer is not None and outer.segments is not None and outer not in before
                if apart or (outer is None and var.family):
                    return True
            before.append(factor.var)
    return False


def _opaque_report(program: Program, mode: Mode) -> tuple[Opaque, ...]:
    where = {node.name: str(node.meta.get("where", "")) for node in program.module.graph.nodes}
    return tuple(Opaque(op, node, where.get(node, ""), reason) for (op, node), reason in mode.opaque.items())
