"""Blocks that fall apart into several single-tensor cuts, put together again.

A person calls every inverted residual of a MobileNet one block. Those with a residual connection are: no value inside
is a cut. Those without are a chain of layers, each of which could be a level. What tells that they are blocks is that
they are instances of the same class. So: if all the parameters of one level are exactly those of one instance of a
class, the class is a *block class*, and levels that lie wholly inside one of its instances become one level, as long as
nothing outside reads them but through the last one. Of nested instances with the same parameters the innermost decides,
for a stage that happens to hold one block says nothing about stages; containers of ``torch.nn`` say nothing either.

Some blocks never have a residual connection: the Fire module of a SqueezeNet, the pair of convolutions of a U-Net. So a
class is a block class too if several of its instances fall into levels and each is a *chain*: two levels or more, none
of which adds back what its own weights read or lies in an instance of another block class (such levels are blocks
themselves), with no more weight operators on a path than a block may have. What goes around several levels makes one
block of them: residual blocks in parallel branches, which no cut divides. An instance of which a level reaches outside
(the last one before a join) says nothing.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import fx

from fxfuse.passes.cuts import DEEP, View, depth
from fxfuse.passes.graphs import CLASSES, SCOPE
from fxfuse.passes.owners import Owners

Paths = dict[fx.Node, list[str]]
"""For every node with parameters the paths of the user's modules around it, outermost first."""


def without_inner(module: fx.GraphModule, view: View, owners: Owners) -> list[fx.Node]:
    """The boundaries that are left when the levels inside one instance of a block class have become one."""
    classes: Mapping[str, str] = module.meta.get(CLASSES, {})
    paths = _paths(view, classes)
    members = owners.members(view)
    held = {b: [n for n in nodes if n in paths] for b, nodes in members.items()}
    sizes: dict[str, int] = {}
    for around in paths.values():
        for path in around:
            sizes[path] = sizes.get(path, 0) + 1
    block_classes: set[str] = set()
    shared: dict[fx.Node, list[str]] = {}
    for boundary, nodes in held.items():
        shared[boundary] = _shared(paths, nodes)
        whole = [path for path in shared[boundary] if sizes[path] == len(nodes)]
        if whole:
            block_classes.add(classes[whole[-1]])
    block_classes |= _chain_classes(view, members, _Instances(classes, sizes, shared), block_classes)
    blocks: dict[str, list[fx.Node]] = {}
    for boundary in owners.boundaries:
        block = next((path for path in shared[boundary] if classes[path] in block_classes), None)
        if block is not None:
            blocks.setdefault(block, []).append(boundary)
    readers = _readers(view, owners, members)
    inner, outputs = set[fx.Node](), set(view.outputs)
    for ends in blocks.values():
        if all(b not in outputs and readers[b] <= set(ends) for b in ends[:-1]):
            inner.update(ends[:-1])
    return [b for b in owners.boundaries if b not in inner]


@dataclass(frozen=True, slots=True)
class _Instances:
    """The class at each path, how many nodes with parameters lie in it, and the paths that hold each level whole."""

    classes: Mapping[str, str]
    sizes: Mapping[str, int]
    shared: Mapping[fx.Node, list[str]]


def _chain_classes(
    view: View, members: Mapping[fx.Node, list[fx.Node]], known: _Instances, blocks: set[str]
) -> set[str]:
    """Classes of which more than one instance falls into levels, and as a chain every time; the innermost ones."""
    inside: dict[str, list[fx.Node]] = {}
    for boundary, around in known.shared.items():
        for path in around:
            inside.setdefault(path, []).append(boundary)
    instances: dict[str, list[str]] = {}
    for path in known.sizes:
        instances.setdefault(known.classes[path], []).append(path)
    found = set[str]()
    for name, places in instances.items():
        whole = [ends for path in places if (ends := _whole(view, members, known, inside.get(path, []), path))]
        if len(whole) > 1 and all(_is_chain(view, members, known, ends, blocks) for ends in whole):
            found.add(name)
    return {name for name in found if not any(_holds_another(path, name, known, found) for path in instances[name])}


def _whole(
    view: View, members: Mapping[fx.Node, list[fx.Node]], known: _Instances, ends: list[fx.Node], path: str
) -> list[fx.Node]:
    """The levels inside an instance, if there are several and they are all of it."""
    held = sum(bool(view.parameters[node]) for end in ends for node in members[end])
    return ends if len(ends) > 1 and held == known.sizes[path] else []


def _is_chain(
    view: View,
    members: Mapping[fx.Node, list[fx.Node]],
    known: _Instances,
    ends: list[fx.Node],
    blocks: set[str],
) -> bool:
    if any(known.classes[inner] in blocks for end in ends for inner in known.shared[end]):
        return False
    nodes = [node for end in ends for node in members[end]]
    return depth(view, nodes) <= DEEP and not any(_adds_input(view, end, set(members[end])) for end in ends)


def _holds_another(path: str, name: str, known: _Instances, found: set[str]) -> bool:
    return any(
        inner.startswith(f"{path}.") and known.classes[inner] in found and known.classes[inner] != name
        for inner in known.sizes
    )


def _adds_input(view: View, end: fx.Node, own: set[fx.Node]) -> bool:
    """Whether a level has weights and a way around them, from what they read to its end. What goes around other levels
    as well makes a block of all of them."""
    weighted = [node for node in own if view.is_weighted(node)]
    around = _read(view, [end], own, view.is_weighted)
    return not around.isdisjoint(_read(view, weighted, own, lambda _: False))


def _read(view: View, ends: Iterable[fx.Node], own: set[fx.Node], closed: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """The values of other levels that these nodes of a level are made from, on ways that meet no closed node."""
    stack, seen, found = list(ends), set[fx.Node](), set[fx.Node]()
    while stack:
        node = stack.pop()
        if node in seen or closed(node):
            continue
        seen.add(node)
        for source in view.inputs[node]:
            if source in own:
                stack.append(source)
            elif source.op != "placeholder":
                found.add(source)
    return found


def _paths(view: View, classes: Mapping[str, str]) -> Paths:
    """Paths of module instances of the user's own classes (and of other libraries') around each node."""
    found: Paths = {}
    for node in view.nodes:
        if node.op == "placeholder" or not view.parameters[node]:
            continue
        place = str(node.target) if node.op == "call_module" else str(node.meta.get(SCOPE, ""))
        parts = place.split(".")
        around = [".".join(parts[:k]) for k in range(1, len(parts) + 1)]
        found[node] = [path for path in around if not classes.get(path, "torch.nn.").startswith("torch.nn.")]
    return found


def _shared(paths: Paths, nodes: Iterable[fx.Node]) -> list[str]:
    """The instances that all of the nodes lie in, outermost first."""
    lists = [paths[node] for node in nodes]
    if not lists:
        return []
    rest = [set(other) for other in lists[1:]]
    return [path for path in lists[0] if all(path in other for other in rest)]


def _readers(view: View, owners: Owners, members: Mapping[fx.Node, list[fx.Node]]) -> dict[fx.Node, set[fx.Node]]:
    """The levels that read each level's value."""
    found: dict[fx.Node, set[fx.Node]] = {b: set() for b in owners.boundaries}
    for boundary, nodes in members.items():
        for node in nodes:
            for source in view.inputs[node]:
                if source in found and source is not boundary:
                    found[source].add(boundary)
    return found
