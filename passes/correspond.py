"""Match the parents' graphs: node by node, parameter by parameter, space by space.

The graphs must be the same up to widths: the same operators in the same order, with the same connections. Then node
``i`` of one is node ``i`` of the other, their parameters correspond, and walking two layouts of one parameter side by
side tells which space of the one is which space of the other. Each parent is returned in the reference's words (its
node names and space numbers), so that no later pass needs to translate; only sizes differ.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx, nn

from fxfuse.errors import MismatchError
from fxfuse.passes.subgraph import needed_nodes, output_nodes
from fxfuse.types import Analysis, Axes, Concat, Layout, Leaf, Level, Program, Space, TensorAxes


@dataclass(frozen=True, slots=True)
class Correspondence:
    """Parents in the reference's words; ``names[p]`` maps the reference's state names to parent ``p``'s own."""

    reference: Analysis
    parents: tuple[Analysis, ...]
    names: tuple[Mapping[str, str], ...]

    def widths(self, space: int) -> tuple[int, ...]:
        """The parents' numbers of neurons in a space."""
        return tuple(parent.axes.spaces[space].size for parent in self.parents)


def correspond(reference: Analysis, parents: Sequence[Analysis]) -> Correspondence:
    """Match every parent to ``reference``. Raises ``MismatchError`` naming the first differing level in each."""
    matched = [_match(reference, parent) for parent in parents]
    return Correspondence(reference, tuple(a for a, _ in matched), tuple(n for _, n in matched))


def _match(reference: Analysis, parent: Analysis) -> tuple[Analysis, Mapping[str, str]]:
    nodes, names = _match_nodes(reference, parent)
    spaces = _match_spaces(reference, parent, names)
    module = parent.program.module
    if any(mine.name != theirs.name for mine, theirs in nodes.items()):
        module = copy.deepcopy(module)
        own = {node.name: node for node in module.graph.nodes}
        for theirs in nodes.values():  # first out of the way, then into place: two names may have changed places
            own[theirs.name].name = f"_{theirs.name}_"
        for mine, theirs in nodes.items():
            own[theirs.name].name = mine.name
        module.recompile()
    renamed = {theirs.name: mine.name for mine, theirs in nodes.items()}
    axes = _translate(reference.axes, parent.axes, spaces, renamed)
    program: Program = replace(parent.program, module=module)
    return Analysis(program, axes, reference.partition), names


# ------------------------------------------------------------------------------------------------- nodes


def _ordered(graph: fx.Graph) -> list[fx.Node]:
    live = needed_nodes(output_nodes(graph), set())
    return [n for n in graph.nodes if n in live or n.op == "placeholder"]


def _match_nodes(reference: Analysis, parent: Analysis) -> tuple[dict[fx.Node, fx.Node], dict[str, str]]:
    mine, theirs = _ordered(reference.program.module.graph), _ordered(parent.program.module.graph)
    pairs: dict[fx.Node, fx.Node] = {}
    names: dict[str, str] = {}
    for a, b in zip(mine, theirs, strict=False):
        if not _same_node(reference.program.module, a, parent.program.module, b, pairs):
            raise _differs(reference, a, parent, b)
        pairs[a] = b
        names.update(_state_names(reference.program.module, a, parent.program.module, b))
    if len(mine) != len(theirs):
        extra = mine[len(theirs)] if len(mine) > len(theirs) else None
        missing = theirs[len(mine)] if extra is None else None
        raise _differs(reference, extra, parent, missing)
    own_state = parent.program.module.state_dict().keys()
    for name in reference.program.module.state_dict():
        if name not in names and name in own_state:  # not used by the graph (an auxiliary head): by its name
            names[name] = name
    return pairs, names


def _same_node(a_module: nn.Module, a: fx.Node, b_module: nn.Module, b: fx.Node, pairs: dict[fx.Node, fx.Node]) -> bool:
    if a.op != b.op or [pairs.get(n) for n in a.all_input_nodes] != b.all_input_nodes:
        return False
    if a.op == "call_module":
        one, two = a_module.get_submodule(str(a.target)), b_module.get_submodule(str(b.target))
        return type(one) is type(two) and _kernel(one) == _kernel(two)
    return a.op in ("placeholder", "get_attr") or str(a.target) == str(b.target)


def _kernel(module: nn.Module) -> tuple[object, ...]:
    """What must agree in two modules of one class: everything but widths."""
    names = ("kernel_size", "stride", "padding", "dilation", "num_layers", "bidirectional", "batch_first")
    return tuple(getattr(module, name, None) for name in names)


def _state_names(a_module: nn.Module, a: fx.Node, b_module: nn.Module, b: fx.Node) -> dict[str, str]:
    if a.op == "get_attr":
        return {str(a.target): str(b.target)}
    if a.op != "call_module":
        return {}
    mine = a_module.get_submodule(str(a.target)).state_dict()
    theirs = b_module.get_submodule(str(b.target)).state_dict()
    return {f"{a.target}.{key}": f"{b.target}.{key}" for key in mine if key in theirs}


def _differs(reference: Analysis, a: fx.Node | None, parent: Analysis, b: fx.Node | None) -> MismatchError:
    def place(analysis: Analysis, node: fx.Node | None) -> str:
        if node is None:
            return f"{analysis.program.name} ends"
        level = _level_of(analysis.partition.levels, node.name)
        what = getattr(node.target, "__name__", node.target)
        if node.op == "call_module":
            what = f"{analysis.program.module.get_submodule(str(node.target))}"
        return f"{analysis.program.name} has {what} at {node.name} (level {level})"

    return MismatchError(
        f"the graphs of {reference.program.name} and {parent.program.name} differ: {place(reference, a)}, "
        f"where {place(parent, b)}. Fusing needs parents of one architecture up to widths."
    )


def _level_of(levels: Sequence[Level], node: str) -> str:
    return next((level.name for level in levels if node in level.nodes), "input")


# ------------------------------------------------------------------------------------------------ spaces


def _match_spaces(reference: Analysis, parent: Analysis, names: Mapping[str, str]) -> dict[int, int]:
    """The parent's space numbers by the reference's."""
    found: dict[int, int] = {}
    for name, axes in reference.axes.state.items():
        theirs = parent.axes.state.get(names.get(name, ""))
        if theirs is None:
            raise MismatchError(f"{parent.program.name} has no counterpart of {name} in {reference.program.name}")
        if len(axes.dims) != len(theirs.dims):
            raise MismatchError(f"{name} has another number of dimensions in {parent.program.name}")
        for dim, (a, b) in enumerate(zip(axes.dims, theirs.dims, strict=True)):
            problem = _walk(a, b, found)
            if problem:
                level = _holder(reference, name)
                raise MismatchError(
                    f"{name} (level {level}), dimension {dim}: {problem} in {parent.program.name} where "
                    f"{reference.program.name} has {a.size}. Only the widths of neuron spaces may differ."
                )
    return found


def _walk(a: Layout, b: Layout, found: dict[int, int]) -> str | None:
    """Enter the spaces that two layouts pair; what is wrong, if they do not match."""
    if isinstance(a, Leaf) and isinstance(b, Leaf):
        if a.space is None and b.space is None:
            return None if a.size == b.size else f"the fixed size {b.size}"
        if a.space is None or b.space is None:
            return f"{b.size} indices of another kind"
        if found.setdefault(a.space, b.space) != b.space:
            return f"a differently coupled neuron space of {b.size}"
        return None
    if type(a) is not type(b) or isinstance(a, Leaf) or isinstance(b, Leaf) or len(a.parts) != len(b.parts):
        return f"another structure of {b.size} indices"
    return next((p for p in (_walk(x, y, found) for x, y in zip(a.parts, b.parts, strict=True)) if p), None)


def _holder(analysis: Analysis, name: str) -> str:
    return next((level.name for level in analysis.partition.levels if name in level.parameters), "none")


def _translate(reference: Axes, axes: Axes, spaces: Mapping[int, int], nodes: Mapping[str, str]) -> Axes:
    """A parent's axes under the reference's space numbers and node names."""
    number = {theirs: mine for mine, theirs in spaces.items()}
    own = {mine: axes.spaces[theirs].size for mine, theirs in spaces.items()}
    return Axes(
        spaces=tuple(Space(s.id, own.get(s.id, s.size), s.name, s.outer) for s in reference.spaces),
        state={name: _renumber(meaning, number) for name, meaning in axes.state.items()},
        values={nodes[n]: _renumber(meaning, number) for n, meaning in axes.values.items() if n in nodes},
        observed={number[s]: tuple(nodes[n] for n in names) for s, names in axes.observed.items() if s in number},
        opaque=axes.opaque,
    )


def _renumber(meaning: TensorAxes, number: Mapping[int, int]) -> TensorAxes:
    def walk(layout: Layout) -> Layout:
        if isinstance(layout, Leaf):
            return layout if layout.space is None else Leaf(layout.size, number.get(layout.space))
        parts = tuple(walk(part) for part in layout.parts)
        return Concat(parts) if isinstance(layout, Concat) else type(layout)(parts)

    reads = frozenset((dim, number[space]) for dim, space in meaning.reads if space in number)
    return TensorAxes(tuple(walk(layout) for layout in meaning.dims), reads)
