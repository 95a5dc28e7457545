"""Match two graphs node by node.

Both are walked from their outputs backwards, argument by argument, so the order in which independent branches were
written does not matter. Two nodes match if they do the same to matching inputs: the same operator, or layers of one
class, with the same arguments. A number among the arguments may differ where it is a *width*, that is, where both
networks have it at the same place of the meaning of the node's own or an input's value, and that place is neurons; or
where it is a function of such a number (``1 / n``, ``n ** 0.5``, ``n ** -0.5``: scales of attention).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.operator_schemas import normalize_function

from fxfuse.errors import MismatchError
from fxfuse.layouts import spaces_in
from fxfuse.passes.graphs import attribute, target_name
from fxfuse.types import Analysis, Layout, Leaf, TensorAxes

IGNORED = frozenset(
    {"inplace", "momentum", "track_running_stats", "eps", "affine", "elementwise_affine", "bias", "dropout"}
)
"""Constants of layers that say nothing about what the neurons are, or that their parameters show anyway."""

_FUNCTIONS: tuple[Callable[[float], float], ...] = (float, lambda n: 1 / n, math.sqrt, lambda n: n**-0.5)


def match_nodes(reference: Analysis, parent: Analysis) -> dict[fx.Node, fx.Node]:
    """The parent's node for each of the reference's, in topological order. Raises ``MismatchError`` naming the first
    node, and its level, that has no counterpart."""
    mine, theirs = _ordered(reference.program.module.graph), _ordered(parent.program.module.graph)
    matching = _Matching(reference, parent, {})
    for a, b in zip(mine, theirs, strict=False):
        how = matching.difference(a, b)
        if how:
            raise _differs(reference, a, parent, b, how)
        matching.pairs[a] = b
    if len(mine) != len(theirs):
        shorter = min(len(mine), len(theirs))
        raise _differs(reference, (*mine, None)[shorter], parent, (*theirs, None)[shorter], "it has no counterpart")
    return {a: matching.pairs[a] for a in reference.program.module.graph.nodes if a in matching.pairs}


def _ordered(graph: fx.Graph) -> list[fx.Node]:
    """Inputs, then everything that the output needs, each node behind its arguments, in the order of the arguments."""
    order: dict[fx.Node, None] = {node: None for node in graph.nodes if node.op == "placeholder"}
    stack: list[tuple[fx.Node, bool]] = [(next(n for n in reversed(graph.nodes) if n.op == "output"), False)]
    while stack:
        node, ready = stack.pop()
        if node in order:
            continue
        if ready:
            order[node] = None
        else:
            stack.append((node, True))
            stack.extend((source, False) for source in reversed(node.all_input_nodes))
    return list(order)


@dataclass(frozen=True, slots=True)
class _Matching:
    reference: Analysis
    parent: Analysis
    pairs: dict[fx.Node, fx.Node]

    def difference(self, a: fx.Node, b: fx.Node) -> str:
        """How two nodes differ in more than widths; empty if they do not."""
        if a.op != b.op:
            return "the operators differ"
        if a.op == "call_module":
            how = self._layers(a, b)
        elif a.op == "get_attr":
            how = self._attributes(a, b)
        else:
            plain = a.op in ("placeholder", "output") or str(a.target) == str(b.target)
            how = "" if plain else "the operators differ"
        if how or a.op == "placeholder":
            return how
        how = self._arguments(a, b, (a.args, a.kwargs), (b.args, b.kwargs))
        if how and a.op == "call_function":  # the same call may be spelled by position or by keyword
            one, two = (_by_keyword(node) for node in (a, b))
            if one is not None and two is not None:
                return self._arguments(a, b, one, two)
        return how

    def _layers(self, a: fx.Node, b: fx.Node) -> str:
        one = self.reference.program.module.get_submodule(str(a.target))
        two = self.parent.program.module.get_submodule(str(b.target))
        if type(one) is not type(two):
            return "the operators differ"
        if one.state_dict().keys() != two.state_dict().keys():
            return "their parameters have other names"
        for name in getattr(one, "__constants__", ()):
            x, y = getattr(one, name, None), getattr(two, name, None)
            if name not in IGNORED and self._arguments(a, b, x, y):
                return f"{name} is {x} and {y}"
        return ""

    def _attributes(self, a: fx.Node, b: fx.Node) -> str:
        x = attribute(self.reference.program.module, str(a.target))
        y = attribute(self.parent.program.module, str(b.target))
        held = (str(a.target) in self.reference.axes.state, str(b.target) in self.parent.axes.state)
        if held[0] != held[1] or isinstance(x, nn.Parameter) != isinstance(y, nn.Parameter):
            return "one is a parameter, the other is not"
        if not held[0] and isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape == y.shape:
            return "" if torch.equal(x, y) else "the constants have other values"
        return ""

    def _arguments(self, a: fx.Node, b: fx.Node, x: Any, y: Any) -> str:
        if isinstance(x, fx.Node) or isinstance(y, fx.Node):
            same = isinstance(x, fx.Node) and isinstance(y, fx.Node) and self.pairs.get(x) is y
            return "" if same else "they read different values"
        if isinstance(x, tuple | list) and isinstance(y, tuple | list):
            if len(x) != len(y):
                return f"the arguments {_plain(x)} and {_plain(y)} differ"
            return next((how for p, q in zip(x, y, strict=True) if (how := self._arguments(a, b, p, q))), "")
        if isinstance(x, dict) and isinstance(y, dict):
            if x.keys() != y.keys():
                return f"the arguments {', '.join(map(str, x))} and {', '.join(map(str, y))} differ"
            return next((how for key in x if (how := self._arguments(a, b, x[key], y[key]))), "")
        if isinstance(x, slice) and isinstance(y, slice):
            return self._arguments(a, b, (x.start, x.stop, x.step), (y.start, y.stop, y.step))
        if type(x) is type(y) and (x == y or str(x) == str(y)):
            return ""
        if type(x) is type(y) and isinstance(x, int | float) and not isinstance(x, bool) and self._is_width(a, b, x, y):
            return ""
        return f"the arguments {_plain(x)} and {_plain(y)} differ"

    def _is_width(self, a: fx.Node, b: fx.Node, x: float, y: float) -> bool:
        for n, m in self._widths(a, b):
            if abs(x) == n and abs(y) == m:
                return True
            if isinstance(x, float) and any(math.isclose(f(n), x) and math.isclose(f(m), y) for f in _FUNCTIONS):
                return True
        return False

    def _widths(self, a: fx.Node, b: fx.Node) -> Iterator[tuple[int, int]]:
        """Sizes at the same places of both nodes' values, inputs and parameters, where those are neurons."""
        for one, two in zip(self._meanings(self.reference, a), self._meanings(self.parent, b), strict=False):
            if one is not None and two is not None:
                for p, q in zip(one.dims, two.dims, strict=False):
                    yield from _sizes(p, q)

    def _meanings(self, analysis: Analysis, node: fx.Node) -> Iterator[TensorAxes | None]:
        values, state = analysis.axes.values, analysis.axes.state
        for found in (node, *node.all_input_nodes):
            yield values.get(found.name, state.get(str(found.target)))
        if node.op == "call_module":
            for key in analysis.program.module.get_submodule(str(node.target)).state_dict():
                yield state.get(f"{node.target}.{key}")


def _sizes(a: Layout, b: Layout) -> Iterator[tuple[int, int]]:
    """Sizes of two layouts and of their parts, and where the parts of a concatenation begin."""
    if not spaces_in(a) and not spaces_in(b):
        return
    yield a.size, b.size
    if isinstance(a, Leaf) or isinstance(b, Leaf) or type(a) is not type(b):
        return
    start, other = 0, 0
    for p, q in zip(a.parts, b.parts, strict=False):
        yield from _sizes(p, q)
        start, other = start + p.size, other + q.size
        yield start, other


def _by_keyword(node: fx.Node) -> dict[str, Any] | None:
    """A call's arguments by name, defaults included, where its signature is known."""

    def kind(value: Any) -> Any:
        if isinstance(value, tuple | list) and value and all(isinstance(entry, int) for entry in value):
            return list[int]  # older torch has overloads by dimensions' names beside those by their numbers
        return Tensor if isinstance(value, fx.Node) else type(value)

    found = normalize_function(
        node.target,  # type: ignore[arg-type]  # callers pass functions only
        node.args,
        dict(node.kwargs),
        tuple(kind(value) for value in node.args),
        {key: kind(value) for key, value in node.kwargs.items()},
        normalize_to_only_use_kwargs=True,
    )
    return None if found is None else dict(found.kwargs)


def _plain(value: Any) -> str:
    return str(value) if len(str(value)) < 80 else f"{str(value)[:77]}..."


def _differs(reference: Analysis, a: fx.Node | None, parent: Analysis, b: fx.Node | None, how: str) -> MismatchError:
    def place(analysis: Analysis, node: fx.Node | None) -> str:
        if node is None or node.op == "output":
            return f"{analysis.program.name} ends"
        module = analysis.program.module
        what = _plain(module.get_submodule(str(node.target)) if node.op == "call_module" else target_name(node))
        return f"{analysis.program.name} has {what} at {node.name} ({_level_of(analysis, node)})"

    return MismatchError(
        f"the graphs of {reference.program.name} and {parent.program.name} differ: {place(reference, a)} where "
        f"{place(parent, b)}: {how}; fusing needs parents of one architecture up to widths"
    )


def _level_of(analysis: Analysis, node: fx.Node) -> str:
    """In words: the first level that a node is in, or that reads it."""
    levels = {name: level.name for level in reversed(analysis.partition.levels) for name in level.nodes}
    queue, seen = [node], {node}
    while queue:
        found = queue.pop(0)
        if found.name in levels:
            return f"level {levels[found.name]}"
        fresh = [user for user in found.users if user not in seen]
        seen.update(fresh)
        queue.extend(fresh)
    return "in no level"
