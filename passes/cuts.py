"""Where a program may be cut: the values at which levels end.

A *cut* is a value that no edge jumps over in topological order: everything before it reaches what comes after through
it alone. One sweep finds all of them. Between two cuts lies a *segment*; segments are gathered so that each level holds
one segment with weights and the per-neuron tail behind it (norm, activation), while pooling and flattening open the
next one. A segment that is too deep to be one block is cut again, at values that no edge of its own jumps over (an
encoder beside another input, a decoder that reads one memory all along); where that does not help (densely connected
layers) it is cut after every weight operator instead. Each function here takes a :class:`View` and returns nodes in
topological order.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import fx, nn

from fxfuse.errors import GraphError, nearest
from fxfuse.passes.graphs import target_name
from fxfuse.passes.shapes import value_shapes
from fxfuse.passes.subgraph import needed_nodes, output_nodes, parameters_of
from fxfuse.types import Program

DEEP = 6
"""A segment with more weight operators than this on one path is cut again, or after each of them."""
OPENINGS = 2
"""How many times a segment may be cut again: the decoder of an encoder, once more."""


@dataclass(frozen=True, slots=True)
class View:
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
        """Whether a node yields one tensor."""
        return self.shapes.get(node.name) is not None

    def is_weighted(self, node: fx.Node) -> bool:
        """Whether a node multiplies by parameters."""
        return bool(self.weights.get(node))


def make_view(program: Program) -> View:
    """The data-carrying part of a program. Raises ``GraphError`` if no output depends on the inputs."""
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
    return View(nodes, index, inputs, users, weights, {n: held[n] for n in nodes}, shapes, outputs)


_CONTRACTING = ("linear", "conv", "matmul", "einsum", "mm", "embedding", "bilinear", "lstm", "gru", "rnn", "attention")


def _contracts(node: fx.Node) -> bool:
    """Whether a node's parameters are weights that it multiplies by, rather than offsets that it adds."""
    return node.op == "call_module" or any(word in target_name(node) for word in _CONTRACTING)


def _carrying(node: fx.Node, carriers: set[fx.Node]) -> list[fx.Node]:
    """The tensor values that a node reads. A size read off a value is no edge: it says how many, not what."""
    return [source for source in node.all_input_nodes if source in carriers]


# ------------------------------------------------------------------------------------------- boundaries


def single_tensor_cuts(view: View) -> list[fx.Node]:
    """Values that no edge jumps over, in topological order; with several outputs, per output over its ancestors.

    What is made from inputs without weights and only read beside what weights have touched (a mask, a bias by position)
    is at hand everywhere: that all layers read it does not tie them together.
    """
    found: dict[fx.Node, None] = {}
    aside = _aside(view)
    for output in view.outputs:
        ancestors = _ancestors(view, output)
        nodes = [n for n in view.nodes if n in ancestors]
        at = {n: i for i, n in enumerate(nodes)}
        reach = 0
        for i, node in enumerate(nodes):
            if node in aside:
                continue
            if reach <= i and node.op != "placeholder" and view.is_tensor(node):
                found[node] = None
            reach = max([reach, *(at[u] for u in view.users[node] if u in at)])
    return [n for n in view.nodes if n in found]


def _aside(view: View) -> set[fx.Node]:
    """The values that are made from inputs without weights, and that no weight operator works on until they have met
    one that weights have touched."""
    given = _given(view)
    aside = set(given)
    for node in reversed(view.nodes):
        begins = node not in given and all(source in given for source in view.inputs[node])
        if begins or (node in given and node not in aside):
            aside.difference_update(view.inputs[node])
    return aside


def _given(view: View) -> set[fx.Node]:
    """The values that are made from inputs without weights."""
    given: set[fx.Node] = set()
    for node in view.nodes:
        if not view.is_weighted(node) and all(source in given for source in view.inputs[node]):
            given.add(node)
    return given


def _ancestors(view: View, node: fx.Node) -> set[fx.Node]:
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        n = stack.pop()
        if n not in seen:
            seen.add(n)
            stack.extend(view.inputs[n])
    return seen


def segments_of(view: View, cuts: Sequence[fx.Node], within: Sequence[fx.Node] | None = None) -> list[list[fx.Node]]:
    """The nodes up to each cut (``within`` these, where they are given) that lie behind the cuts before it."""
    seen: set[fx.Node] = set() if within is None else set(view.nodes) - set(within)
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


def block_ends(view: View) -> list[fx.Node]:
    """Ends of levels that hold one segment with weights each, or one weight operator where a segment is too deep and
    cannot be cut again."""
    cuts = single_tensor_cuts(view)
    for output in view.outputs:
        if output not in cuts:
            cuts.append(output)
    cuts.sort(key=view.index.__getitem__)
    boundaries = [*_segment_ends(view, cuts, segments_of(view, cuts), OPENINGS), *view.outputs]
    return list(dict.fromkeys(boundaries))


def _segment_ends(
    view: View, cuts: Sequence[fx.Node], segments: Sequence[Sequence[fx.Node]], openings: int
) -> list[fx.Node]:
    """The ends of the levels that the segments up to these cuts make, but for the last one's."""
    boundaries: list[fx.Node] = []
    last: fx.Node | None = None  # end of the level under construction, once it holds weights
    for cut, segment in zip(cuts, segments, strict=True):
        if any(view.is_weighted(n) for n in segment):
            if last is not None:
                boundaries.append(last)
            if _is_deep(view, segment):
                ends = _opened(view, segment, openings) or weight_ends(view, segment)
                boundaries.extend(n for n in ends if n is not cut)
            last = cut
        elif last is not None and last not in boundaries:
            if _is_tail(view, last, cut, segment):
                last = cut
            else:  # pooling, flattening: the level ends before it
                boundaries.append(last)
    return boundaries


def _is_deep(view: View, segment: Sequence[fx.Node]) -> bool:
    return sum(view.is_weighted(n) for n in segment) > DEEP and depth(view, segment) > DEEP


def _opened(view: View, segment: Sequence[fx.Node], openings: int) -> list[fx.Node] | None:
    """The ends of levels in a segment that is too deep, by cuts of its own; ``None`` where there are none, and where
    what the first part reads goes around it to a later one: such connections (of a U-Net, of densely connected layers,
    around a block of blocks) tie the parts together."""
    cuts = _own_cuts(view, segment)
    if not openings or len(cuts) < 2:
        return None
    first, *later = parts = segments_of(view, cuts, segment)
    own, given = set(segment), _given(view)
    read = {source for node in first for source in view.inputs[node]} - own - given
    if any(source in read for part in later for node in part for source in view.inputs[node]):
        return None
    return _segment_ends(view, cuts, parts, openings - 1)


def _own_cuts(view: View, segment: Sequence[fx.Node]) -> list[fx.Node]:
    """Values that no edge within the segment jumps over. What comes from before it, or from inputs without weights, is
    at hand: a memory that all decoder layers attend to, the other input's tower, a connection around the whole."""
    own = {node: i for i, node in enumerate(segment)}
    given = _given(view)
    found, reach = [], 0
    for i, node in enumerate(segment):
        if node in given:
            continue
        if reach <= i and view.is_tensor(node):
            found.append(node)
        reach = max([reach, *(own[user] for user in view.users[node] if user in own)])
    return found


def depth(view: View, segment: Sequence[fx.Node]) -> int:
    """The most weight operators on one path through nodes in topological order."""
    found: dict[fx.Node, int] = {}
    for node in segment:
        before = max((found.get(source, 0) for source in view.inputs[node]), default=0)
        found[node] = before + int(view.is_weighted(node))
    return max(found.values())


def _is_tail(view: View, before: fx.Node, after: fx.Node, segment: Sequence[fx.Node]) -> bool:
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
        word in target_name(node) for word in ("pool", "flatten", "reshape", "view", "permute", "transpose", "cat")
    )


def weight_ends(view: View, nodes: Iterable[fx.Node]) -> list[fx.Node]:
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


def _tensor_after(view: View, node: fx.Node) -> fx.Node:
    """The nearest single-tensor value behind a node that yields several."""
    queue = list(view.users[node])
    while queue:
        user = queue.pop(0)
        if view.is_tensor(user):
            return user
        queue.extend(view.users[user])
    return node


def counted_ends(view: View, blocks: Sequence[fx.Node], count: int) -> list[fx.Node]:
    """At most ``count`` levels of about equally many parameters, by joining blocks (or layers, if blocks are few)."""
    candidates = list(blocks)
    if len(candidates) < count:
        candidates = weight_ends(view, view.nodes)
    candidates.sort(key=view.index.__getitem__)
    cuts = {*single_tensor_cuts(view), *view.outputs}
    if count < len(candidates):
        candidates = [c for c in candidates if c in cuts]
    sizes = [sum(_weight(view, n) for n in segment) for segment in segments_of(view, candidates)]
    total, gathered, made = sum(sizes) or 1, 0, 1
    chosen: list[fx.Node] = []
    for position, (candidate, size) in enumerate(zip(candidates[:-1], sizes[:-1], strict=True)):
        gathered += size
        left = len(candidates) - position - 1
        if made < count and (gathered >= total * made / count or left <= count - made):
            chosen.append(candidate)
            made += 1
    return list(dict.fromkeys([*chosen, *view.outputs]))


def _weight(view: View, node: fx.Node) -> int:
    module = node.graph.owning_module
    return 0 if module is None else sum(module.get_parameter(p).numel() for p in view.parameters[node])


def named_ends(view: View, names: Sequence[str], levels: Callable[[], Mapping[str, fx.Node]] = dict) -> list[fx.Node]:
    """The nodes of these names (or the last values of modules of these paths, or the ends of ``levels``), and the
    outputs."""
    by_name = {n.name: n for n in view.nodes}
    for node in view.nodes:  # a module path names the last value that the module yields
        if node.op == "call_module":
            by_name.setdefault(str(node.target), node)
    if not by_name.keys() >= set(names):
        by_name = {**levels(), **by_name}
    for name in names:
        if name not in by_name:
            raise GraphError(f"granularity: the graph has no value called {name!r}; {nearest(name, by_name)}")
        if not view.is_tensor(by_name[name]):
            raise GraphError(f"granularity: {name!r} yields several tensors; a level ends at one")
    return list(dict.fromkeys([*(by_name[name] for name in names), *view.outputs]))
