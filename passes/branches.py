"""One graph out of several: a shared trunk, and the parents' later levels as branches that answer together.

The first levels of the fused graph are the *trunk*; they keep their node names and parameter names. Behind it parent
``p`` goes on with its own later levels, under the name ``branches.p``. Where such a level reads a trunk's value ``y``
in space ``a``, it is given the parent's neurons as they are found in the fused ones, ``U_a,p y``: a selection along the
neuron axis where every neuron is found in one fused neuron, a product with a constant otherwise. A *combiner* makes one
answer of the branches' answers at every output; it is a module that is written into the graph. What is added computes
in the parents' own precision, in single precision where that is less.

An empty trunk gives the parents side by side: an ensemble, or a choice among them, as one graph. Every output is named
as in the reference, so whatever asks for it by name finds it.
"""

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxfuse.layouts import Merger, spaces_in
from fxfuse.passes.correspond import Correspondence
from fxfuse.passes.graphs import CanonicalModule, Container, attribute, graft
from fxfuse.passes.shapes import value_types
from fxfuse.passes.subgraph import needed_nodes, output_nodes
from fxfuse.types import Grouping, Layout, Leaf, Level, TensorAxes

Combine = Callable[[str], nn.Module]
"""For the name of an output: a module that takes all branches' values there, one argument each, and gives one."""

Typed = tuple[fx.Node, torch.dtype | None]
"""A value with its type, where that is known."""

PREFIX = "branches"


def branched(
    pairs: Correspondence,
    trunk: fx.GraphModule,
    levels: int,
    groupings: Mapping[int, Grouping],
    combine: Combine,
    *,
    also: Sequence[str] = (),
    members: Sequence[int] | None = None,
) -> CanonicalModule:
    """The graph whose first ``levels`` levels are those of ``trunk`` (which has the reference's graph) and whose others
    are branches, in evaluation mode; parameters are copies.

    ``combine`` is asked for a module per output that is not in the trunk. Its module is also given the branches' values
    at the nodes in ``also``, node by node, behind the outputs' own. ``members`` are the parents that get a branch (all
    by default). Where the graph can be cut, :func:`can_branch` says.
    """
    writer = _Writer(pairs, trunk)
    ahead = pairs.reference.partition.levels[:levels]
    writer.trunk(ahead)
    chosen = range(len(pairs.parents)) if members is None else members
    outputs = [node.name for node in output_nodes(trunk.graph)]
    late = [name for name in outputs if name not in writer.values]
    answers: dict[str, list[fx.Node]] = {name: [] for name in (*late, *also)}
    for p in chosen:
        for name, value in writer.branch(p, groupings, [*late, *also]).items():
            answers[name].append(value)
    extra = [(value, writer.types.get(name)) for name in also for value in answers[name]]
    for name in late:
        own = [(value, writer.types.get(name)) for value in answers[name]]
        writer.values[name] = writer.call(combine(name), f"combine.{name}", [*own, *extra], name)
    return writer.finish()


def can_branch(pairs: Correspondence, levels: int) -> bool:
    """Whether the graph can be cut behind its first ``levels`` levels: every value that is read behind the cut has a
    meaning dimension by dimension."""
    ahead = {level.boundary for level in pairs.reference.partition.levels[:levels]}
    read = {name for level in pairs.reference.partition.levels[levels:] for name in level.inputs}
    outer = {space.id: space.outer for space in pairs.reference.axes.spaces}
    for name in ahead & read:
        meaning = pairs.reference.axes.values.get(name)
        if meaning is None or any(name not in parent.axes.values for parent in pairs.parents):
            return False
        for layout in meaning.dims:
            inside = set(spaces_in(layout))
            if any(outer[space] is not None and outer[space] not in inside for space in inside):
                return False
    return True


class _Writer:
    """A graph under way, and the modules and tensors that it calls."""

    def __init__(self, pairs: Correspondence, trunk: fx.GraphModule) -> None:
        self.pairs, self.source = pairs, trunk
        self.root, self.graph = Container(), fx.Graph()
        self.values: dict[str, fx.Node] = {}
        self.types = value_types(pairs.reference.program)
        for node in trunk.graph.nodes:
            if node.op == "placeholder":
                self.values[node.name] = self.graph.node_copy(node)

    def trunk(self, levels: Sequence[Level]) -> None:
        """Copy what computes the boundaries of ``levels``; only those values are handed on."""
        nodes = {node.name: node for node in self.source.graph.nodes}
        ends = [nodes[level.boundary] for level in levels]
        needed = needed_nodes(ends, {nodes[name] for name in self.values})
        place = _Placement(self.root, self.source, "")
        env = {nodes[name]: value for name, value in self.values.items()}
        for node in self.source.graph.nodes:
            if node in needed and node not in env:
                env[node] = self._copied(node, place, env, node.name)
        self.values |= {end.name: env[end] for end in ends}

    def branch(self, parent: int, groupings: Mapping[int, Grouping], names: Sequence[str]) -> dict[str, fx.Node]:
        """Copy what a parent computes behind the trunk; its values at ``names``."""
        source = self.pairs.parents[parent].program.module
        nodes = {node.name: node for node in source.graph.nodes}
        known = {nodes[name] for name in self.values if name in nodes}
        needed = needed_nodes([nodes[name] for name in names], known)
        place = _Placement(self.root, source, f"{PREFIX}.{parent}.")
        env: dict[fx.Node, fx.Node] = {}
        for node in source.graph.nodes:
            if node not in needed:
                continue
            if node in known:
                env[node] = self._adapted(node.name, parent, groupings)
            else:
                env[node] = self._copied(node, place, env, f"{node.name}_of_{parent}")
        return {name: env[nodes[name]] for name in names}

    def _adapted(self, name: str, parent: int, groupings: Mapping[int, Grouping]) -> fx.Node:
        """A trunk's value with a parent's neurons."""
        value = self.values[name]
        meaning = self.pairs.parents[parent].axes.values.get(name)
        if value.op == "placeholder" or meaning is None:
            return value
        outer = {space.id: space.outer for space in self.pairs.reference.axes.spaces}
        for dim, layout in enumerate(meaning.dims):
            if not spaces_in(layout):
                continue
            matrix = _found_again(layout, parent, groupings, outer)
            module = _adapter(matrix, dim)
            if module is not None:
                inputs = [(value, self.types.get(name))]
                value = self.call(module, f"{PREFIX}.{parent}.found.{name}_{dim}", inputs, f"{name}_for_{parent}")
        return value

    def _copied(self, node: fx.Node, place: "_Placement", env: Mapping[fx.Node, fx.Node], name: str) -> fx.Node:
        args = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: env[n])
        target = place(str(node.target)) if node.op in ("call_module", "get_attr") else node.target
        made = self.graph.create_node(node.op, target, args[0], args[1], name)
        made.meta = dict(node.meta)
        return made

    def call(self, module: nn.Module, path: str, inputs: Sequence[Typed], name: str) -> fx.Node:
        """Write the operators of a small module of ours into the graph; the result is named ``name`` and is of the
        first input's type."""
        types = [kind for _, kind in inputs if kind is not None and kind.is_floating_point]
        wide = functools.reduce(torch.promote_types, types, torch.float32)
        kind = inputs[0][1]
        narrow = kind if kind is not None and kind.is_floating_point and kind != wide else None
        traced = _traced(module.to(wide), len(inputs))
        place = _Placement(self.root, traced, f"{path}.")
        placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
        given = [self._to(value, wide) if own in types and own != wide else value for value, own in inputs]
        env: dict[fx.Node, fx.Node] = dict(zip(placeholders, given, strict=True))
        (result,) = output_nodes(traced.graph)
        for node in traced.graph.nodes:
            if node.op not in ("placeholder", "output"):
                last = node is result and narrow is None
                env[node] = self._copied(node, place, env, name if last else f"{name}_{node.name}")
        return env[result] if narrow is None else self._to(env[result], narrow, name)

    def _to(self, value: fx.Node, kind: torch.dtype, name: str | None = None) -> fx.Node:
        return self.graph.create_node("call_method", "to", (value, kind), {}, name or f"{value.name}_wide")

    def finish(self) -> CanonicalModule:
        """The module; its output has the structure of the trunk's."""
        final = next(node for node in reversed(self.source.graph.nodes) if node.op == "output")
        self.graph.output(fx.node.map_arg(final.args[0], lambda n: self.values[n.name]))
        self.graph.lint()
        module = CanonicalModule(self.root, self.graph, "CanonicalModule")
        graft(module, self.root)
        module.eval()
        return module


def _traced(module: nn.Module, count: int) -> fx.GraphModule:
    """The operators of a module that takes any number of tensors, for ``count`` of them."""
    tracer = fx.Tracer()
    tracer.root, tracer.graph = module, fx.Graph()
    tracer.tensor_attrs = {}
    inputs = [fx.Proxy(tracer.graph.placeholder(f"x{i}"), tracer) for i in range(count)]
    tracer.graph.output(module.forward(*inputs).node)
    return fx.GraphModule(module, tracer.graph)


class _Placement:
    """Copies what a source's nodes call to a prefix of the root, each once, ties kept."""

    def __init__(self, root: nn.Module, source: fx.GraphModule, prefix: str) -> None:
        self.root, self.source, self.prefix = root, source, prefix
        self.memo: dict[int, Any] = {}
        self.persistent = set(source.state_dict())
        self.placed: set[str] = set()

    def __call__(self, target: str) -> str:
        path = self.prefix + target
        if target in self.placed:
            return path
        self.placed.add(target)
        owner = self.root
        *parents, last = path.split(".")
        for part in parents:
            if part not in owner._modules:
                owner.add_module(part, Container())
            owner = owner.get_submodule(part)
        value = copy.deepcopy(attribute(self.source, target), self.memo)
        if isinstance(value, nn.Module):
            owner.add_module(last, value)
        elif isinstance(value, nn.Parameter):
            owner.register_parameter(last, value)
        elif isinstance(value, Tensor):
            owner.register_buffer(last, value, persistent=target in self.persistent)
        else:
            setattr(owner, last, value)
        return path


# ------------------------------------------------------------------------------------------------- adapters


def _found_again(
    layout: Layout, parent: int, groupings: Mapping[int, Grouping], outer: Mapping[int, int | None]
) -> Tensor:
    """``U`` of one dimension, parent's entries x fused entries: an identity, read along the dimension."""
    merger = Merger(parent, 1.0, groupings, outer)
    reads = frozenset((1, space) for space in spaces_in(layout))
    pinned = TensorAxes((Leaf(layout.size), layout), reads)
    return merger.tensor(torch.eye(layout.size, dtype=torch.float64), pinned)


class Select(nn.Module):
    """``y[.., index, ..]`` along one dimension."""

    def __init__(self, index: Tensor, dim: int) -> None:
        super().__init__()
        self.register_buffer("index", index)
        self.dim = dim

    def forward(self, value: Tensor) -> Tensor:
        """The chosen entries."""
        return torch.index_select(value, self.dim, self.get_buffer("index"))


class Mix(nn.Module):
    """``sum_j matrix[i, j] y[.., j, ..]`` along one dimension."""

    def __init__(self, matrix: Tensor, dim: int) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.dim = dim

    def forward(self, value: Tensor) -> Tensor:
        """The mixed entries."""
        return nn.functional.linear(value.movedim(self.dim, -1), self.get_buffer("matrix")).movedim(-1, self.dim)


def _adapter(matrix: Tensor, dim: int) -> nn.Module | None:
    """The module that applies ``U`` along a dimension; ``None`` for an identity."""
    if matrix.shape[0] == matrix.shape[1] and torch.equal(matrix, torch.eye(len(matrix), dtype=matrix.dtype)):
        return None
    if bool(((matrix == 0) | (matrix == 1)).all()) and bool((matrix.sum(1) == 1).all()):
        return Select(matrix.argmax(1), dim)
    return Mix(matrix, dim)
