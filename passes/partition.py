"""Cut a program into levels.

A *cut* is a value that no edge jumps over in topological order: everything before it reaches what comes after through
it alone. One sweep finds all of them. Between two cuts lies a *segment*; segments are gathered into levels so that
each level holds one segment with weights and the per-neuron tail behind it (norm, activation), while pooling and
flattening open the next one. A segment that is too deep to be one block (densely connected ones, say) is cut after
every weight operator instead.

Given the boundaries, a node belongs to the level whose boundary alone it feeds: owners are propagated from the
outputs backwards. A node with parameters that feeds two levels becomes a boundary itself; a node without is copied
into both. Everything is linear in the size of the graph.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import fx, nn

from fxfuse.errors import GraphError, nearest
from fxfuse.layouts import spaces_in
from fxfuse.passes.shapes import value_shapes
from fxfuse.passes.subgraph import needed_nodes, output_nodes, parameters_of
from fxfuse.types import Axes, Granularity, Level, Partition, Program

DEEP = 6
"""A segment with more weight operators than this on one path is cut after each of them."""


@dataclass(frozen=True, slots=True)
class _View:
    """The data-carrying part of a graph: its nodes in order, which of them hold weights, and what feeds what."""

    nodes: list[fx.Node]
    index: dict[fx.Node, int]
    inputs: dict[fx.Node, list[fx.Node]]
    users: dict[fx.Node, list[fx.Node]]
    weights: dict[fx.Node, list[str]]
    parameters: dict[fx.Node, list[str]]
    shapes: dict[str, tuple[int, ...] | None]
    outputs: list[fx.Node]

    def is_tensor(self, node: fx.Node) -> bool:
        return self.shapes.get(node.name) is not None

    def is_weighted(self, node: fx.Node) -> bool:
        return bool(self.weights.get(node))


def partition(program: Program, axes: Axes, granularity: Granularity = "block") -> Partition:
    """Levels of ``program`` at the wanted granularity.

    ``block``: residual blocks, encoder layers, and what stands alone between single-tensor cuts. ``layer``: every
    weight operator with its tail. A number: that many levels, or as many as there are. Names: exactly these nodes are
    boundaries (and the outputs, and what sharing makes necessary). Raises ``GraphError`` for an unknown name.
    """
    view = _view(program)
    if isinstance(granularity, tuple):
        boundaries = _named(view, granularity)
    elif granularity == "layer":
        boundaries = _after_weights(view, view.nodes)
    elif granularity == "block":
        boundaries = _blocks(view)
    elif isinstance(granularity, int) and not isinstance(granularity, bool) and granularity >= 1:
        boundaries = _counted(view, granularity)
    else:
        raise GraphError(f"granularity must be 'block', 'layer', a positive number or node names. Got {granularity!r}.")
    owners, boundaries = _owners(view, boundaries)
    levels, notes = _levels(program, axes, view, owners, boundaries)
    return Partition(levels, granularity, notes)


def _view(program: Program) -> _View:
    graph, module = program.module.graph, program.module
    shapes = value_shapes(program)
    live = needed_nodes(output_nodes(graph), set())
    data: dict[fx.Node, bool] = {}
    held: dict[fx.Node, list[str]] = {}
    weights: dict[fx.Node, list[str]] = {}
    for node in graph.nodes:
        if node.op == "output" or node not in live:
            continue
        own = parameters_of(module, node)
        feeding = [n for n in node.all_input_nodes if n in data]
        data[node] = node.op == "placeholder" or any(data[n] for n in feeding)
        held[node] = own + [p for n in feeding if not data[n] for p in held[n]]
        if data[node]:
            weights[node] = [p for p in held[node] if module.get_parameter(p).ndim > 1] if _contracts(node) else []
    carriers = {n for n, is_data in data.items() if is_data and n.name in shapes}
    nodes = [n for n in graph.nodes if n in carriers]
    inputs = {n: _carrying(n, carriers) for n in nodes}
    users: dict[fx.Node, list[fx.Node]] = {n: [] for n in nodes}
    for n in nodes:
        for source in inputs[n]:
            users[source].append(n)
    outputs = [n for n in output_nodes(graph) if n in carriers]
    if not outputs:
        raise GraphError(f"{program.name}: the graph returns no tensor that depends on its inputs")
    index = {n: i for i, n in enumerate(nodes)}
    return _View(nodes, index, inputs, users, weights, {n: held[n] for n in nodes}, shapes, outputs)


_CONTRACTING = ("linear", "conv", "matmul", "einsum", "mm", "embedding", "bilinear", "lstm", "gru", "rnn", "attention")


def _contracts(node: fx.Node) -> bool:
    """Whether a node's parameters are weights that it multiplies by, rather than offsets that it adds."""
    return node.op == "call_module" or any(word in _target_name(node) for word in _CONTRACTING)


def _target_name(node: fx.Node) -> str:
    return str(node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target))


def _carrying(node: fx.Node, carriers: set[fx.Node]) -> list[fx.Node]:
    """The tensor values that a node reads. A size read off a value is no edge: it says how many, not what."""
    return [source for source in node.all_input_nodes if source in carriers]


# ------------------------------------------------------------------------------------------- boundaries


def _cuts(view: _View) -> list[fx.Node]:
    """Values that no edge jumps over, in topological order; with several outputs, per output over its ancestors."""
    found: dict[fx.Node, None] = {}
    for output in view.outputs:
        ancestors = _ancestors(view, output)
        nodes = [n for n in view.nodes if n in ancestors]
        at = {n: i for i, n in enumerate(nodes)}
        reach = 0
        for i, node in enumerate(nodes):
            if reach <= i and node.op != "placeholder" and view.is_tensor(node):
                found[node] = None
            reach = max([reach, *(at[u] for u in view.users[node] if u in at)])
    return [n for n in view.nodes if n in found]


def _ancestors(view: _View, node: fx.Node) -> set[fx.Node]:
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        n = stack.pop()
        if n not in seen:
            seen.add(n)
            stack.extend(view.inputs[n])
    return seen


def _segments(view: _View, cuts: Sequence[fx.Node]) -> list[list[fx.Node]]:
    """The nodes up to each cut that lie behind the cuts before it."""
    seen: set[fx.Node] = set()
    out = []
    for cut in cuts:
        own, stack = [], [cut]
        while stack:
            n = stack.pop()
            if n in seen:
                continue
            seen.add(n)
            own.append(n)
            stack.extend(view.inputs[n])
        out.append(sorted(own, key=view.index.__getitem__))
    return out


def _blocks(view: _View) -> list[fx.Node]:
    cuts = _cuts(view)
    for output in view.outputs:
        if output not in cuts:
            cuts.append(output)
    cuts.sort(key=view.index.__getitem__)
    boundaries: list[fx.Node] = []
    last: fx.Node | None = None  # end of the level under construction, once it holds weights
    for cut, segment in zip(cuts, _segments(view, cuts), strict=True):
        weighted = [n for n in segment if view.is_weighted(n)]
        if weighted:
            if last is not None:
                boundaries.append(last)
            if len(weighted) > DEEP and _depth(view, segment) > DEEP:
                boundaries.extend(n for n in _after_weights(view, segment) if n is not cut)
            last = cut
        elif last is not None and last not in boundaries:
            if _is_tail(view, last, cut, segment):
                last = cut
            else:  # pooling, flattening: the level ends before it
                boundaries.append(last)
    boundaries.extend(view.outputs)
    return list(dict.fromkeys(boundaries))


def _depth(view: _View, segment: Sequence[fx.Node]) -> int:
    """The most weight operators on one path through a segment."""
    depth: dict[fx.Node, int] = {}
    for node in segment:
        before = max((depth.get(source, 0) for source in view.inputs[node]), default=0)
        depth[node] = before + int(view.is_weighted(node))
    return max(depth.values())


def _is_tail(view: _View, before: fx.Node, after: fx.Node, segment: Sequence[fx.Node]) -> bool:
    """Norms and activations: the shape stays, nothing else is read."""
    same = view.shapes[before.name] == view.shapes[after.name]
    return same and not any(_moves(node) for node in segment)


_MOVING = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d, nn.Flatten, nn.Unflatten,
)  # fmt: skip


def _moves(node: fx.Node) -> bool:
    if node.op == "call_module":
        root = node.graph.owning_module
        return root is not None and isinstance(root.get_submodule(str(node.target)), _MOVING)
    return any(
        word in _target_name(node) for word in ("pool", "flatten", "reshape", "view", "permute", "transpose", "cat")
    )


def _after_weights(view: _View, nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """The end of every weight operator's per-neuron tail."""
    ends: dict[fx.Node, None] = {}
    for node in nodes:
        if not view.is_weighted(node):
            continue
        end = node
        while len(view.users[end]) == 1:
            (user,) = view.users[end]
            if (
                view.is_weighted(user)
                or not view.is_tensor(user)
                or _moves(user)
                or view.shapes.get(user.name) != view.shapes.get(end.name)
                or end in view.outputs
            ):
                break
            end = user
        if not view.is_tensor(end):
            end = _tensor_after(view, end)
        ends[end] = None
    for output in view.outputs:
        ends[output] = None
    return list(ends)


def _tensor_after(view: _View, node: fx.Node) -> fx.Node:
    """The nearest single-tensor value behind a node that yields several."""
    queue = list(view.users[node])
    while queue:
        user = queue.pop(0)
        if view.is_tensor(user):
            return user
        queue.extend(view.users[user])
    return node


def _counted(view: _View, count: int) -> list[fx.Node]:
    """At most ``count`` levels of about equally many parameters, by joining blocks (or layers, if blocks are few)."""
    candidates = _blocks(view)
    if len(candidates) < count:
        candidates = _after_weights(view, view.nodes)
    candidates.sort(key=view.index.__getitem__)
    cuts = {*_cuts(view), *view.outputs}
    if count < len(candidates):
        candidates = [c for c in candidates if c in cuts]
    sizes = [sum(_weight(view, n) for n in segment) for segment in _segments(view, candidates)]
    total, gathered, made = sum(sizes) or 1, 0, 1
    chosen: list[fx.Node] = []
    for position, (candidate, size) in enumerate(zip(candidates[:-1], sizes[:-1], strict=True)):
        gathered += size
        left = len(candidates) - position - 1
        if made < count and (gathered >= total * made / count or left <= count - made):
            chosen.append(candidate)
            made += 1
    return list(dict.fromkeys([*chosen, *view.outputs]))


def _weight(view: _View, node: fx.Node) -> int:
    module = node.graph.owning_module
    return 0 if module is None else sum(module.get_parameter(p).numel() for p in view.parameters[node])


def _named(view: _View, names: Sequence[str]) -> list[fx.Node]:
    by_name = {n.name: n for n in view.nodes}
    for node in view.nodes:  # a module path names the last value that the module yields
        if node.op == "call_module":
            by_name.setdefault(str(node.target), node)
    for name in names:
        if name not in by_name:
            raise GraphError(f"granularity: the graph has no value called {name!r}; {nearest(name, by_name)}")
        if not view.is_tensor(by_name[name]):
            raise GraphError(f"granularity: {name!r} yields several tensors; a level ends at one")
    return list(dict.fromkeys([*(by_name[name] for name in names), *view.outputs]))


# ------------------------------------------------------------------------------------------------ owners


def _owners(view: _View, boundaries: Sequence[fx.Node]) -> tuple[dict[fx.Node, set[fx.Node]], list[fx.Node]]:
    """The levels that every node belongs to, and the boundaries that are left after sharing has been resolved."""
    chosen = set(boundaries)
    removed: set[fx.Node] = set()
    while True:
        owners: dict[fx.Node, set[fx.Node]] = {}
        again = False
        for node in reversed(view.nodes):
            mine = {node} if node in chosen else set().union(*(owners[u] for u in view.users[node]))
            if len(mine) > 1 and view.parameters[node] and node.op != "placeholder":
                if view.is_tensor(node):
                    chosen.add(node)
                    mine = {node}
                else:  # its parts go to different levels: those levels become one
                    first = min(mine, key=view.index.__getitem__)
                    if first in view.outputs:
                        first = max(mine, key=view.index.__getitem__)
                    chosen.discard(first)
                    removed.add(first)
                    again = True
                    break
            owners[node] = mine
        if again:
            continue
        hollow = [b for b in chosen if b not in view.outputs and not _holds(view, owners, b)]
        if not hollow:
            return owners, sorted(chosen, key=view.index.__getitem__)
        chosen.difference_update(hollow)


def _holds(view: _View, owners: dict[fx.Node, set[fx.Node]], boundary: fx.Node) -> bool:
    stack, seen = [boundary], set()
    while stack:
        node = stack.pop()
        if node in seen or boundary not in owners[node]:
            continue
        seen.add(node)
        if view.parameters[node]:
            return True
        stack.extend(view.inputs[node])
    return False


# ------------------------------------------------------------------------------------------------ levels


def _levels(
    program: Program, axes: Axes, view: _View, owners: dict[fx.Node, set[fx.Node]], boundaries: Sequence[fx.Node]
) -> tuple[tuple[Level, ...], tuple[str, ...]]:
    members: dict[fx.Node, list[fx.Node]] = {b: [] for b in boundaries}
    for node in view.nodes:
        if node.op != "placeholder":
            for owner in owners[node]:
                members[owner].append(node)
    ends = set(boundaries)
    taken: dict[int, str] = {}
    notes, levels = [], []
    names: dict[str, int] = {}
    for number, boundary in enumerate(boundaries):
        nodes = members[boundary]
        inside = set(nodes)
        inputs = dict.fromkeys(source.name for node in nodes for source in _sources(node, inside, ends))
        parameters = []
        for name in dict.fromkeys(p for node in nodes for p in view.parameters[node]):
            tensor = program.module.get_parameter(name)
            if id(tensor) in taken:
                if taken[id(tensor)] != boundary.name:
                    notes.append(f"{name} is shared between levels; it belongs to the first that uses it")
                continue
            taken[id(tensor)] = boundary.name
            parameters.append(name)
        shape = view.shapes[boundary.name] or ()
        axis, space = _neuron_axis(axes, boundary.name)
        name = _level_name(view, nodes, boundary)
        names[name] = names.get(name, 0) + 1
        levels.append(
            Level(
                index=number,
                name=name if names[name] == 1 else f"{name}#{names[name]}",
                boundary=boundary.name,
                nodes=tuple(node.name for node in nodes),
                inputs=tuple(inputs),
                parameters=tuple(parameters),
                operators=tuple(_operator(program.module, node) for node in nodes),
                shape=(-1, *shape[1:]) if shape else (),
                neuron_axis=axis,
                space=space,
            )
        )
    used = {name for level in levels for name in level.parameters}
    idle = [n for n, p in program.module.named_parameters() if n not in used and id(p) not in taken]
    if idle:
        notes.append(f"{len(idle)} parameters are not used in evaluation mode ({idle[0]}, ..): they lie in no level")
    return tuple(levels), tuple(dict.fromkeys(notes))


def _sources(node: fx.Node, inside: set[fx.Node], ends: set[fx.Node]) -> list[fx.Node]:
    """Boundaries and placeholders that a node reads, directly or through sizes and constants computed from them."""
    found: dict[fx.Node, None] = {}
    stack, seen = list(node.all_input_nodes), set(inside)
    while stack:
        source = stack.pop()
        if source in seen:
            continue
        seen.add(source)
        if source.op == "placeholder" or source in ends:
            found[source] = None
        else:
            stack.extend(source.all_input_nodes)
    return list(found)


def _neuron_axis(axes: Axes, node: str) -> tuple[int | None, int | None]:
    meaning = axes.values.get(node)
    if meaning is None:
        return None, None
    for dim, layout in enumerate(meaning.dims):
        spaces = spaces_in(layout)
        if spaces:
            return dim, spaces[0]
    return None, None


def _level_name(view: _View, nodes: Sequence[fx.Node], boundary: fx.Node) -> str:
    """The module path that all of a level's weights share, or the path of its first weight if they share too little."""
    paths = [p.rpartition(".")[0] for node in nodes for p in view.weights[node]]
    paths = paths or [p.rpartition(".")[0] for node in nodes for p in view.parameters[node]]
    if not any(paths):
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
    return _target_name(node)
