"""Cut a program into levels.

Given the boundaries (:mod:`fxfuse.passes.cuts`), a node belongs to the level whose boundary alone it feeds: owners are
propagated from the outputs backwards. A node with parameters that feeds two levels becomes a boundary itself; a node
without is copied into both. At the granularity of blocks, levels that together are one instance of a block class are
joined (:mod:`fxfuse.passes.instances`). Everything is linear in the size of the graph.
"""

from collections.abc import Sequence

from torch import fx, nn

from fxfuse.errors import GraphError
from fxfuse.layouts import spaces_in
from fxfuse.passes.cuts import View, block_ends, counted_ends, make_view, named_ends, weight_ends
from fxfuse.passes.graphs import target_name
from fxfuse.passes.instances import without_inner
from fxfuse.passes.owners import Owners, find_owners
from fxfuse.types import Axes, Granularity, Level, Partition, Program


def partition(program: Program, axes: Axes, granularity: Granularity = "block") -> Partition:
    """Levels of ``program`` at the wanted granularity.

    ``block``: residual blocks, encoder layers, and what stands alone between single-tensor cuts. ``layer``: every
    weight operator with its tail. A number: that many levels, or as many as there are. Names, of nodes, modules or the
    levels of the other granularities: exactly these are boundaries (and the outputs, and what sharing makes necessary).
    Raises ``GraphError`` for an unknown name.
    """
    view = make_view(program)
    if isinstance(granularity, tuple | list):
        granularity = tuple(granularity)
        boundaries = named_ends(view, granularity, lambda: _level_ends(program, axes, view))
    elif granularity == "layer":
        boundaries = weight_ends(view, view.nodes)
    elif granularity == "block":
        boundaries = _blocks(program, view)
    elif isinstance(granularity, int) and not isinstance(granularity, bool) and granularity >= 1:
        boundaries = counted_ends(view, _blocks(program, view), granularity)
    else:
        raise GraphError(f"granularity must be 'block', 'layer', a positive number or node names. Got {granularity!r}.")
    owners = find_owners(view, boundaries)
    levels, notes = _levels(program, axes, view, owners)
    return Partition(levels, granularity, notes)


def _blocks(program: Program, view: View) -> list[fx.Node]:
    owners = find_owners(view, block_ends(view))
    return without_inner(program.module, view, owners)


def _level_ends(program: Program, axes: Axes, view: View) -> dict[str, fx.Node]:
    """Where the levels of the named granularities end, by their names; blocks first."""
    by_name = {node.name: node for node in view.nodes}
    found: dict[str, fx.Node] = {}
    for boundaries in (_blocks(program, view), weight_ends(view, view.nodes)):
        for level in _levels(program, axes, view, find_owners(view, boundaries))[0]:
            found.setdefault(level.name, by_name[level.boundary])
    return found


# ------------------------------------------------------------------------------------------------ levels


def _levels(program: Program, axes: Axes, view: View, owners: Owners) -> tuple[tuple[Level, ...], tuple[str, ...]]:
    ends = set(owners.boundaries)
    taken: dict[int, str] = {}
    notes: dict[str, None] = {}
    names: dict[str, int] = {}
    levels = []
    for number, (boundary, nodes) in enumerate(owners.members(view).items()):
        name = _level_name(view, nodes, boundary)
        names[name] = names.get(name, 0) + 1
        shape = view.shapes[boundary.name] or ()
        axis, space = _neuron_axis(axes, boundary.name)
        levels.append(
            Level(
                index=number,
                name=name if names[name] == 1 else f"{name}#{names[name]}",
                boundary=boundary.name,
                nodes=tuple(node.name for node in nodes),
                inputs=tuple(_inputs(nodes, ends)),
                parameters=tuple(_parameters(program.module, view, nodes, boundary, taken, notes)),
                operators=tuple(_operator(program.module, node) for node in nodes),
                shape=(-1, *shape[1:]) if shape else (),
                neuron_axis=axis,
                space=space,
            )
        )
    used = {name for level in levels for name in level.parameters}
    idle = [n for n, p in program.module.named_parameters() if n not in used and id(p) not in taken]
    if idle:
        notes[f"{len(idle)} parameters are not used in evaluation mode ({idle[0]}, ..): they lie in no level"] = None
    return tuple(levels), tuple(notes)


def _parameters(
    module: fx.GraphModule,
    view: View,
    nodes: Sequence[fx.Node],
    boundary: fx.Node,
    taken: dict[int, str],
    notes: dict[str, None],
) -> list[str]:
    """Names of the parameters that a level has to itself; those that an earlier one took are noted."""
    found: dict[int, str] = {}
    for name in dict.fromkeys(p for node in nodes for p in view.parameters[node]):
        key = id(module.get_parameter(name))
        if taken.setdefault(key, boundary.name) == boundary.name:
            found.setdefault(key, name)
        else:
            notes[f"{name} is shared between levels; it belongs to the first that uses it"] = None
    return list(found.values())


def _inputs(nodes: Sequence[fx.Node], ends: set[fx.Node]) -> list[str]:
    """Boundaries and placeholders that a level reads, directly or through sizes and constants computed from them."""
    found: dict[fx.Node, None] = {}
    seen = set(nodes)
    for node in nodes:
        stack = list(node.all_input_nodes)
        while stack:
            source = stack.pop()
            if source in seen:
                continue
            seen.add(source)
            if source.op == "placeholder" or source in ends:
                found[source] = None
            else:
                stack.extend(source.all_input_nodes)
    return [node.name for node in found]


def _neuron_axis(axes: Axes, node: str) -> tuple[int | None, int | None]:
    meaning = axes.values.get(node)
    if meaning is None:
        return None, None
    for dim, layout in enumerate(meaning.dims):
        spaces = spaces_in(layout)
        if spaces:
            return dim, spaces[0]
    return None, None


def _level_name(view: View, nodes: Sequence[fx.Node], boundary: fx.Node) -> str:
    """The module path that all of a level's weights share, or the path of its first weight if they share too little."""
    paths = [p.rpartition(".")[0] for node in nodes for p in view.weights[node]]
    paths = paths or [p.rpartition(".")[0] for node in nodes for p in view.parameters[node]]
    paths = [path for path in paths if path]  # parameters of the network itself have no module to name
    if not paths:
        return boundary.name
    shared = [path.split(".") for path in paths]
    common = [parts[0] for parts in zip(*shared, strict=False) if len(set(parts)) == 1]
    length = next((i for i, parts in enumerate(zip(*shared, strict=False)) if len(set(parts)) > 1), len(common))
    name = ".".join(shared[0][:length])
    return name or paths[0]


def _operator(module: nn.Module, node: fx.Node) -> str:
    """A short name for a reader."""
    if node.op == "call_module":
        target = module.get_submodule(str(node.target))
        name = type(target).__name__
        kernel = getattr(target, "kernel_size", None)
        if kernel is not None and name.startswith(("Conv", "MaxPool", "AvgPool")):
            sizes = kernel if isinstance(kernel, tuple) else (kernel,) * 2
            groups = getattr(target, "groups", 1)
            name += " " + "x".join(str(k) for k in sizes) + (f" /{groups}" if groups != 1 else "")
        return name
    return target_name(node)
