"""Which level every node belongs to, once the boundaries are known."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from fxfuse.passes.cuts import View


@dataclass(frozen=True, slots=True)
class Owners:
    """``of[node]`` are the boundaries of the levels that a node is in; ``boundaries`` all of them, in order."""

    of: dict[fx.Node, set[fx.Node]]
    boundaries: list[fx.Node]

    def members(self, view: View) -> dict[fx.Node, list[fx.Node]]:
        """The nodes of every level, by its boundary, in topological order."""
        found: dict[fx.Node, list[fx.Node]] = {b: [] for b in self.boundaries}
        for node in view.nodes:
            if node.op != "placeholder":
                for owner in self.of[node]:
                    found[owner].append(node)
        return found


def find_owners(view: View, boundaries: Iterable[fx.Node]) -> Owners:
    """Owners of all nodes; the boundaries that are left have parameters in their level, or are outputs.

    A node with parameters that feeds several levels ends one of its own. If it yields several tensors, which no level
    may end at, the levels that it feeds become one; where they are outputs, which have to stay, it is in all of them.
    """
    wanted, banned = list(boundaries), set[fx.Node]()
    while True:
        chosen = {b for b in wanted if b not in banned}
        owners, dropped = _propagate(view, chosen, banned)
        if dropped:
            banned |= dropped
            continue
        hollow = {b for b in chosen if b not in view.outputs and not _holds(view, owners, b)}
        if not hollow:
            return Owners(owners, sorted(chosen, key=view.index.__getitem__))
        wanted = [b for b in chosen if b not in hollow]


def _propagate(
    view: View, chosen: set[fx.Node], banned: set[fx.Node]
) -> tuple[dict[fx.Node, set[fx.Node]], set[fx.Node]]:
    """Owners from the outputs backwards. ``chosen`` grows by what must be a boundary; what must not is returned."""
    owners: dict[fx.Node, set[fx.Node]] = {}
    dropped: set[fx.Node] = set()
    outputs = set(view.outputs)
    for node in reversed(view.nodes):
        mine = {node} if node in chosen else _union(owners, view.users[node]) - dropped
        if len(mine) > 1 and view.parameters[node] and node.op != "placeholder":
            if not view.is_tensor(node):
                spare = sorted(mine - outputs, key=view.index.__getitem__)
                spare = spare if mine & outputs else spare[:-1]
                dropped.update(spare)
                mine = mine.difference(spare)
            elif node not in banned:
                chosen.add(node)
                mine = {node}
        owners[node] = mine
    return owners, dropped


def _union(owners: dict[fx.Node, set[fx.Node]], users: list[fx.Node]) -> set[fx.Node]:
    if len(users) == 1:
        return owners[users[0]]
    return set().union(*(owners[user] for user in users))


def _holds(view: View, owners: dict[fx.Node, set[fx.Node]], boundary: fx.Node) -> bool:
    """Whether a level has parameters."""
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
