"""Match the parents' graphs: node by node, parameter by parameter, space by space.

The graphs must be the same up to widths (:mod:`fxfuse.passes.matching`). Then the parameters of matched nodes
correspond, and walking two layouts of one parameter side by side tells which space of the one is which of the other.
Each parent is returned in the reference's words (its node names and space numbers), so that no later pass needs to
translate; only sizes differ.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx

from fxfuse.errors import MismatchError
from fxfuse.layouts import spaces_in
from fxfuse.passes.graphs import copied
from fxfuse.passes.matching import match_nodes
from fxfuse.passes.partition import partition
from fxfuse.types import Analysis, Axes, Concat, Layout, Leaf, Space, TensorAxes


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
    richest = max(parents, key=lambda parent: len(parent.axes.spaces))
    if len(richest.axes.spaces) > len(reference.axes.spaces):
        for parent in parents:  # a mismatch of graphs is told in the reference's words
            match_nodes(reference, parent)
        reference = _in_words_of(richest, reference)
    matched = [_match(reference, parent) for parent in parents]
    return Correspondence(reference, tuple(a for a, _ in matched), tuple(n for _, n in matched))


def _match(reference: Analysis, parent: Analysis) -> tuple[Analysis, Mapping[str, str]]:
    nodes = match_nodes(reference, parent)
    names = _state_names(reference.program.module, parent.program.module, nodes)
    spaces = _match_spaces(reference, parent, names)
    module = parent.program.module
    if any(mine.name != theirs.name for mine, theirs in nodes.items()):
        module = _renamed(module, {theirs.name: mine.name for mine, theirs in nodes.items()})
    renamed = {theirs.name: mine.name for mine, theirs in nodes.items()}
    axes = _translate(reference.axes, parent.axes, spaces, names, renamed)
    return Analysis(replace(parent.program, module=module), axes, reference.partition), names


def _in_words_of(richest: Analysis, reference: Analysis) -> Analysis:
    """The reference with spaces where it has but one neuron and others have several."""
    found, _ = _match(richest, reference)
    boundary = {a.name: b.name for b, a in match_nodes(richest, reference).items()}
    ends = tuple(boundary[level.boundary] for level in reference.partition.levels)
    levels = partition(found.program, found.axes, ends).levels
    return replace(found, partition=replace(reference.partition, levels=levels))


def _renamed(module: fx.GraphModule, names: Mapping[str, str]) -> fx.GraphModule:
    """The same weights in a graph whose nodes have other names; nodes without a new one make way."""
    module = copied(module, share=True)
    for node in module.graph.nodes:
        node.name = names.get(node.name, f"_{node.name}_")
    module.recompile()
    return module


# ------------------------------------------------------------------------------------------------- state


def _state_names(mine: fx.GraphModule, theirs: fx.GraphModule, nodes: Mapping[fx.Node, fx.Node]) -> dict[str, str]:
    """The parent's state names by the reference's: by the nodes that use them, then by what is tied to those, then,
    for what the graph does not use (an auxiliary head), by their own name."""
    names: dict[str, str] = {}
    own, other = mine.state_dict(keep_vars=True), theirs.state_dict(keep_vars=True)
    for a, b in nodes.items():
        if a.op == "get_attr" and str(a.target) in own:
            names[str(a.target)] = str(b.target)
        elif a.op == "call_module":
            keys = mine.get_submodule(str(a.target)).state_dict()
            names.update({f"{a.target}.{key}": f"{b.target}.{key}" for key in keys})
    tied = {id(own[name]): theirs for name, theirs in names.items()}
    for name, tensor in own.items():
        if name not in names and id(tensor) in tied:
            names[name] = tied[id(tensor)]
        elif name not in names and name in other:
            names[name] = name
    return names


# ------------------------------------------------------------------------------------------------ spaces


def _match_spaces(reference: Analysis, parent: Analysis, names: Mapping[str, str]) -> dict[int, int | None]:
    """The parent's space numbers by the reference's; ``None`` for one neuron, which no permutation shows."""
    found: dict[int, int | None] = {}
    for name, axes in reference.axes.state.items():
        if name not in names:  # the graph does not use it, and the parent has none: the reference keeps its own
            continue
        theirs = parent.axes.state[names[name]]
        if len(axes.dims) != len(theirs.dims):
            raise _differs(reference, name, axes, parent, names[name], theirs, "their numbers of dimensions differ")
        for dim, (a, b) in enumerate(zip(axes.dims, theirs.dims, strict=True)):
            problem = _walk(a, b, found)
            if problem:
                raise _differs(reference, name, axes, parent, names[name], theirs, f"in dimension {dim} {problem}")
    numbers = [number for number in found.values() if number is not None]
    twice = next((s for s, number in found.items() if number is not None and numbers.count(number) > 1), None)
    if twice is not None:
        raise MismatchError(
            f"{parent.program.name} couples neurons at {reference.axes.spaces[twice].name} that are independent in "
            f"{reference.program.name}; fusing needs parents of one architecture up to widths"
        )
    return found


def _differs(
    reference: Analysis, name: str, mine: TensorAxes, parent: Analysis, own_name: str, theirs: TensorAxes, how: str
) -> MismatchError:
    def place(analysis: Analysis, tensor: str, axes: TensorAxes) -> str:
        shape = " x ".join(str(layout.size) for layout in axes.dims)
        return f"{tensor} of {analysis.program.name} ({shape}, level {_holder(analysis, tensor)})"

    return MismatchError(
        f"{place(reference, name, mine)} and {place(parent, own_name, theirs)} do not correspond: {how}; "
        "only the widths of neuron spaces may differ"
    )


def _walk(a: Layout, b: Layout, found: dict[int, int | None]) -> str | None:
    """Enter the spaces that two layouts pair; what is wrong, if they do not match."""
    if isinstance(a, Leaf) and isinstance(b, Leaf):
        if a.space is None and b.space is None:
            return (
                None if a.size == b.size else f"the sizes {a.size} and {b.size} are fixed (inputs, outputs, positions)"
            )
        if a.space is None or (b.space is None and b.size > 1):
            kinds = ("fixed", "neurons") if a.space is None else ("neurons", "fixed")
            return f"{a.size} indices are {kinds[0]} and {b.size} are {kinds[1]}"
        if found.setdefault(a.space, b.space) != b.space:
            return f"neurons ({a.size} and {b.size}) are coupled differently"
        return None
    if type(a) is not type(b) or isinstance(a, Leaf) or isinstance(b, Leaf) or len(a.parts) != len(b.parts):
        return f"{a.size} and {b.size} indices are structured differently"
    return next((p for p in (_walk(x, y, found) for x, y in zip(a.parts, b.parts, strict=True)) if p), None)


def _holder(analysis: Analysis, name: str) -> str:
    return next((level.name for level in analysis.partition.levels if name in level.parameters), "none")


def _translate(
    reference: Axes, axes: Axes, spaces: Mapping[int, int | None], names: Mapping[str, str], nodes: Mapping[str, str]
) -> Axes:
    """A parent's axes under the reference's space numbers and node names."""
    number = {theirs: mine for mine, theirs in spaces.items() if theirs is not None}
    sizes = {mine: 1 if theirs is None else axes.spaces[theirs].size for mine, theirs in spaces.items()}
    alike = {theirs: reference.state[mine] for mine, theirs in names.items() if mine in reference.state}
    return Axes(
        spaces=tuple(Space(s.id, sizes.get(s.id, s.size), s.name, s.outer) for s in reference.spaces),
        state={name: _reworded(alike.get(name), meaning, number) for name, meaning in axes.state.items()},
        values={
            nodes[node]: _reworded(reference.values.get(nodes[node]), meaning, number)
            for node, meaning in axes.values.items()
            if node in nodes
        },
        observed={
            **{s: reference.observed.get(s, ()) for s, theirs in spaces.items() if theirs is None},
            **{number[s]: tuple(nodes[n] for n in seen) for s, seen in axes.observed.items() if s in number},
        },
        opaque=axes.opaque,
    )


def _reworded(like: TensorAxes | None, meaning: TensorAxes, number: Mapping[int, int]) -> TensorAxes:
    """``meaning`` with the reference's space numbers; ``like`` is the reference's own meaning of the same tensor."""

    def walk(mine: Layout | None, layout: Layout) -> Layout:
        if isinstance(layout, Leaf):
            if layout.space is not None:
                return Leaf(layout.size, number.get(layout.space))
            return Leaf(1, mine.space) if layout.size == 1 and isinstance(mine, Leaf) else layout
        known = mine.parts if isinstance(mine, type(layout)) else ()
        parts = [known[i] if len(known) == len(layout.parts) else None for i in range(len(layout.parts))]
        made = tuple(walk(p, part) for p, part in zip(parts, layout.parts, strict=True))
        return Concat(made) if isinstance(layout, Concat) else type(layout)(made)

    alike = like.dims if like is not None and len(like.dims) == len(meaning.dims) else (None,) * len(meaning.dims)
    reads = {(dim, number[space]) for dim, space in meaning.reads if space in number}
    dims = tuple(walk(mine, layout) for mine, layout in zip(alike, meaning.dims, strict=True))
    if like is not None:
        reads |= {(dim, space) for dim, space in like.reads if dim < len(dims) and space in spaces_in(dims[dim])}
    return TensorAxes(dims, frozenset(reads))
