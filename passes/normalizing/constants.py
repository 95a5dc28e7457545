"""Fold what depends on neither the data nor the parameters.

A node is *free of data* if all it reads is constants, sizes, types and devices. Attention masks, position indices and
the like are built by such nodes, often with in-place writes. They are run once, for real, at both batch sizes; a
tensor that comes out the same at both becomes a non-persistent buffer. This must happen before in-place operators are
made functional: a mask that is filled slice by slice is one constant, not fifty scatter operations.
"""

from typing import Any

import torch
from torch import Tensor, fx, nn

from fxfuse.passes.graphs import attribute, install, words
from fxfuse.passes.normalizing.aliases import Aliases, mutated
from fxfuse.passes.probing import LANES, PROBE, Editor

_READS_SHAPE_ONLY = frozenset(
    words("size dim numel new_zeros new_ones new_full new_empty get_device element_size stride")
)
_LIKE = frozenset({torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like, torch.numel})
_ATEN_LIKE = ("sym_size", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "new_empty")
_RANDOM = frozenset({torch.rand, torch.randn, torch.bernoulli, torch.multinomial, torch.normal, torch.randint})


def reads_shape_only(node: fx.Node) -> bool:
    """Whether the node looks at its first argument's shape, type and device, never at its values."""
    if node.op == "call_method":
        return node.target in _READS_SHAPE_ONLY
    if node.target is getattr:  # ``x.dtype``, but not ``x.T``
        return not isinstance(node.meta[PROBE][0], Tensor)
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.split("::")[1].split(".")[0] in _ATEN_LIKE
    return node.target in _LIKE


def _free(graph: fx.Graph, root: nn.Module, *, buffers: bool) -> set[fx.Node]:
    """The nodes that are free of data; with ``buffers``, values read from buffers count as constants."""
    names = {name for name, _ in root.named_buffers()} if buffers else _constants(root)
    free: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr":
            if str(node.target) in names or _is_plain(root, str(node.target)):
                free.add(node)
        elif node.op in {"call_function", "call_method"} and node.target not in _RANDOM:
            inputs = node.all_input_nodes
            if reads_shape_only(node):
                inputs = [n for n in inputs if n is not node.args[0]]
            if all(n in free or _is_number(n) for n in inputs):
                free.add(node)
    return free


def _is_plain(root: nn.Module, path: str) -> bool:
    """A tensor that is neither a parameter nor a buffer: a plain attribute or a literal met while tracing."""
    *parents, last = path.split(".")
    owner = attribute(root, ".".join(parents)) if parents else root
    return last in owner.__dict__


def _constants(root: nn.Module) -> set[str]:
    return {name for name, _ in root.named_buffers() if name.rpartition(".")[2].startswith(PREFIX)}


PREFIX = "_constant"
"""Names of folded constants begin with this."""


def _is_number(node: fx.Node) -> bool:
    value = node.meta[PROBE][0]
    return isinstance(value, int | float | bool | str | torch.dtype | torch.device)


class Evaluator:
    """Runs the nodes that are free of data for real, in one lane, in graph order."""

    def __init__(self, root: nn.Module, lane: int) -> None:
        self.root, self.lane = root, lane
        self.values: dict[fx.Node, Any] = {}

    def value(self, node: fx.Node) -> Any:
        """A number from the probe, a tensor from the run."""
        if node in self.values:
            return self.values[node]
        return node.meta[PROBE][self.lane]

    def run(self, node: fx.Node) -> None:
        """Evaluate one node."""
        if node.op == "get_attr":
            self.values[node] = attribute(self.root, str(node.target)).detach().clone()
            return
        if _is_number(node):
            return
        args, kwargs = fx.map_arg(node.args, self.value), fx.map_arg(node.kwargs, self.value)
        if reads_shape_only(node) and node.args[0] not in self.values:
            args = (_stand_in(args[0]), *args[1:])
        if node.op == "call_method":
            self.values[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            self.values[node] = node.target(*args, **kwargs)  # type: ignore[operator]  # call_function targets are callable


def _stand_in(fake: Any) -> Any:
    """A real tensor of the same shape and type that costs no memory."""
    if not isinstance(fake, Tensor):
        return fake
    return torch.zeros((), dtype=fake.dtype, device=fake.device).expand(fake.shape)


@torch.no_grad()
def constant_value(root: nn.Module, graph: fx.Graph, node: fx.Node, lane: int) -> Tensor | None:
    """The value of a tensor node that is free of data (buffers allowed), while its graph is still being traced."""
    free = _free(graph, root, buffers=True)
    if node not in free:
        return None
    needed, stack = set(), [node]
    while stack:
        current = stack.pop()
        if current in needed:
            continue
        needed.add(current)
        stack.extend(n for n in current.all_input_nodes if n in free)
        stack.extend(n for n in current.users if n in free and mutated(n) is current)
    evaluator = Evaluator(root, lane)
    for current in graph.nodes:
        if current in needed:
            evaluator.run(current)
    value = evaluator.value(node)
    return value if isinstance(value, Tensor) else None


@torch.no_grad()
def fold_constants(module: fx.GraphModule) -> int:
    """Replace tensors that are free of data and of the batch size by buffers."""
    edit = Editor(module)
    free = _free(module.graph, module, buffers=False)
    free -= _written_with_data(module.graph, free)
    seen = _snapshots(module, free)
    changes = 0
    made: dict[tuple[fx.Node, int], str] = {}
    for (node, reader), (version, value) in seen.items():
        if node not in free or node.op == "get_attr":
            continue
        if _is_size(value) and _takes_sizes(reader, node):
            _write(reader, node, int(value))
            changes += 1
            continue
        if (node, version) not in made:
            made[node, version] = _fresh(module)
            install(module, made[node, version], value)
            changes += 1
        with edit.at(reader):
            constant = edit.get(made[node, version])
        reader.replace_input_with(node, constant)
    if changes:
        _sweep(module.graph, free)
    return changes


_SIZED: set[Any] = {torch.reshape, torch.as_strided, torch.unflatten, torch.zeros, torch.ones, torch.empty, torch.full}
_SIZED |= {"view", "reshape", "as_strided", "unflatten", "expand", "repeat", "new_zeros", "new_ones", "new_empty"}


def _is_size(value: Tensor) -> bool:
    return value.dim() == 0 and value.dtype in (torch.int32, torch.int64)


def _takes_sizes(reader: fx.Node, size: fx.Node) -> bool:
    """Whether ``reader`` takes ``size`` for a number: a tensor of one (``torch.div(x.size(1), 4, rounding_mode=..)``)
    will do when it runs, but tells nothing of shapes without data."""
    return reader.target in _SIZED and reader.args[:1] != (size,)


def _write(reader: fx.Node, node: fx.Node, number: int) -> None:
    """``number`` in the place of ``node`` among what ``reader`` takes."""
    reader.args = fx.map_arg(reader.args, lambda n: number if n is node else n)
    reader.kwargs = fx.map_arg(reader.kwargs, lambda n: number if n is node else n)


def _snapshots(module: fx.GraphModule, free: set[fx.Node]) -> dict[tuple[fx.Node, fx.Node], tuple[int, Tensor]]:
    """For each read of a foldable tensor by a node with data: its value at that moment, and how often it was written.

    Nodes that cannot be run are taken out of ``free``, with all that depends on them.
    """
    lanes = [Evaluator(module, lane) for lane in range(len(LANES))]
    seen: dict[tuple[fx.Node, fx.Node], tuple[int, Tensor]] = {}
    for node in module.graph.nodes:
        if node in free:
            if not _runs(node, lanes):
                free.discard(node)
                _taint(node, free)
            continue
        for source in node.all_input_nodes:
            values = [lane.values.get(source) for lane in lanes]
            if source not in free or (reads_shape_only(node) and source is node.args[0]):
                continue
            if all(isinstance(v, Tensor) for v in values) and _equal(values[0], values[1]):
                assert isinstance(values[0], Tensor)
                seen[source, node] = (values[0]._version, values[0].clone())
    return seen


def _sweep(graph: fx.Graph, free: set[fx.Node]) -> None:
    """Erase constant nodes, writes included, that nothing outside the constants reads any more."""
    aliases = Aliases(graph)
    needed: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        target = mutated(node)
        written = target is not None and aliases.root(target) in needed
        if node not in free or written or node in needed or any(user not in free for user in node.users):
            needed.add(node)
            needed.update(node.all_input_nodes)
            needed.update(aliases.root(n) for n in node.all_input_nodes if n in free)
    for node in reversed(graph.nodes):
        if node not in needed and not node.users:
            graph.erase_node(node)


def _runs(node: fx.Node, lanes: list[Evaluator]) -> bool:
    try:
        for lane in lanes:
            lane.run(node)
    except Exception:  # whatever cannot be run here stays in the graph, which is checked as a whole
        return False
    return True


def _taint(node: fx.Node, free: set[fx.Node]) -> None:
    for user in node.users:
        if user in free and not reads_shape_only(user):
            free.discard(user)
            _taint(user, free)


def _written_with_data(graph: fx.Graph, free: set[fx.Node]) -> set[fx.Node]:
    """Constants that are later written with data, their aliases, and all that follows from them."""
    aliases = Aliases(graph)
    dirty = {aliases.root(target) for node in graph.nodes if (target := mutated(node)) is not None and node not in free}
    tainted: set[fx.Node] = set()
    for node in graph.nodes:
        if node in free and (
            aliases.root(node) in dirty or any(n in tainted for n in node.all_input_nodes if not reads_shape_only(node))
        ):
            tainted.add(node)
    return tainted


def _equal(first: Any, second: Any) -> bool:
    return first.shape == second.shape and bool(torch.equal(first, second))


def _fresh(module: nn.Module) -> str:
    index = 0
    while hasattr(module, f"{PREFIX}{index}"):
        index += 1
    return f"{PREFIX}{index}"
