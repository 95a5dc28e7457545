"""Make sizes in the graph follow the widths of the weights.

A traced reshape carries numbers that were true for one width. Align its input and output dimensions from the left into
the smallest groups of equal size (row-major order makes this unique); then, in each group,

- one output dimension is the product of the group's input sizes: read them;
- several output dimensions, all of them numbers (or the outer ones computed from the batch size): the outer ones
  stay (heads, groups, packed parts), the innermost is what is left (the width of a head);
- anything else stays as it is, and is reported if it holds numbers.

One dimension per reshape may be ``-1``; it is the one that is most work to write otherwise.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxfuse.passes.graphs import WHERE
from fxfuse.passes.probing import PROBE, Editor

_NOTES = "unfollowed"
_SPLITS = frozenset({torch.split, torch.functional.split})


@dataclass(frozen=True, slots=True)
class Follow:
    """A size that is read: the product of the input's sizes at ``dims``, divided by ``divisor``.

    A ``divisor`` of 0 stands for what the other dimensions leave: such a size can only be written as ``-1``.
    """

    dims: tuple[int, ...]
    divisor: int = 1

    @property
    def cost(self) -> int:
        """Nodes needed to write it."""
        return 1000 if self.divisor == 0 else 2 * len(self.dims) - 1 + (self.divisor > 1)


def follow_widths(module: fx.GraphModule) -> int:
    """Replace numbers in reshapes, expansions, splits and norms by reads of sizes."""
    edit = Editor(module)
    module.meta[_NOTES] = []
    changes = _tiles_to_chunks(edit)
    for node in list(module.graph.nodes):
        if node.op not in {"call_function", "call_method"} or not node.args:
            continue
        with edit.at(node):
            if node.target is torch.reshape:
                changes += _reshape(edit, node)
            elif node.target == "expand":
                changes += _expand(node)
            elif node.target in _SPLITS:
                changes += _split(edit, node)
            elif node.target is torch.unflatten:
                changes += _unflatten(node)
            elif node.target is F.pad:
                _pad(edit, node)
            elif (cut := _fixed_slice(node)) is not None and cut[2] - cut[1] > 1:
                _note(edit, node, f"a slice keeps its bounds {cut[1]}:{cut[2]}")
            elif node.target in {F.layer_norm, F.rms_norm, torch.layer_norm, torch.rms_norm}:
                changes += _norm(edit, node)
    return changes + share_sizes(module)


def unfollowed(module: fx.GraphModule) -> tuple[str, ...]:
    """What ``follow_widths`` had to leave, in words."""
    return tuple(dict.fromkeys(module.meta.pop(_NOTES, [])))


def _note(edit: Editor, node: fx.Node, text: str) -> None:
    edit.module.meta[_NOTES].append(f"{text} at {node.meta.get(WHERE) or node.name}")


def _shapes(node: fx.Node) -> list[tuple[int, int]]:
    first, second = node.meta[PROBE]
    return list(zip(first.shape, second.shape, strict=True))


def _reshape(edit: Editor, node: fx.Node) -> int:
    source, sizes = node.args[0], node.args[1] if len(node.args) > 1 else node.kwargs.get("shape")
    if not isinstance(source, fx.Node) or not isinstance(sizes, tuple | list):
        return 0
    if not any(isinstance(s, int) and s > 1 for s in sizes):
        return 0
    plan = plan_reshape(_shapes(source), _shapes(node), _with_inner_free(node, sizes))
    if plan is None:
        _note(edit, node, "a reshape keeps its sizes")
        return 0
    new = _write(edit, source, plan)
    if tuple(sizes) == new:
        return 0
    node.args, node.kwargs = (source, new), {}
    return 1


def _with_inner_free(node: fx.Node, sizes: Sequence[Any]) -> Sequence[Any]:
    """``view(B, N, -1, d)`` followed by a swap of dimensions 1 and 2 splits heads: write ``view(B, N, h, -1)``.

    In every other reshape the ``-1`` stays where the user put it.
    """
    after = _shapes(node)
    if len(sizes) != 4 or sizes[2] != -1 or not isinstance(sizes[3], int):
        return sizes
    swaps = any(
        (user.target is torch.transpose and {d % 4 for d in user.args[1:3] if isinstance(d, int)} == {1, 2})
        or (user.target is torch.permute and tuple(user.args[1]) in {(0, 2, 1, 3), (0, 2, 3, 1)})  # type: ignore[arg-type]
        for user in node.users
    )
    return (*sizes[:2], after[2][0], -1) if swaps and after[2][0] == after[2][1] else sizes


def _write(edit: Editor, source: fx.Node, plan: Sequence[Any]) -> tuple[Any, ...]:
    """Turn a plan into arguments: the costliest entry becomes ``-1``, unless one already is."""
    follows = [i for i, entry in enumerate(plan) if isinstance(entry, Follow)]
    taken = any(isinstance(p, int) and p == -1 for p in plan)
    free = None if taken or not follows else max(follows, key=lambda i: (plan[i].cost, i))
    result = []
    for i, entry in enumerate(plan):
        if not isinstance(entry, Follow):
            result.append(entry)
        elif i == free:
            result.append(-1)
        else:
            value: Any = edit.size(source, entry.dims[0])
            for dim in entry.dims[1:]:
                value = edit.call(operator.mul, value, edit.size(source, dim))
            result.append(edit.call(operator.floordiv, value, entry.divisor) if entry.divisor > 1 else value)
    return tuple(result)


def plan_reshape(
    before: Sequence[tuple[int, int]], after: Sequence[tuple[int, int]], sizes: Sequence[Any]
) -> list[Any] | None:
    """For each output dimension: a number, a node, or a ``Follow``; ``None`` if no group could be decided.

    ``before`` and ``after`` are the shapes in both lanes, ``sizes`` the reshape's own argument.

    >>> plan_reshape([(5, 3), (197, 197), (768, 768)], [(5, 3), (197, 197), (12, 12), (64, 64)], [-1, 197, 12, 64])
    [Follow(dims=(0,), divisor=1), Follow(dims=(1,), divisor=1), 12, Follow(dims=(2,), divisor=12)]
    """
    groups = align(before, after)
    if groups is None:
        return None
    plan: list[Any] = list(sizes)
    for dims, outputs in groups:
        _plan_group(plan, dims, outputs, after)
    if sum(isinstance(p, Follow) and p.divisor == 0 for p in plan) + plan.count(-1) > 1:
        return None
    undecided = any(isinstance(p, int) and p > 1 and len(d) > 1 for d, out in groups for p in (plan[o] for o in out))
    return None if undecided and plan == list(sizes) else plan


def _plan_group(plan: list[Any], dims: list[int], outputs: list[int], after: Sequence[tuple[int, int]]) -> None:
    numbers = [o for o in outputs if isinstance(plan[o], int)]
    if not dims or not numbers:
        return
    if len(outputs) == 1:
        plan[outputs[0]] = Follow(tuple(dims))
    elif len(numbers) == len(outputs) and len(dims) == 1:
        wanted = [o for o in outputs if plan[o] == -1]
        derived = wanted[0] if wanted else outputs[-1]
        divisor = math.prod(after[o][0] for o in outputs if o != derived)
        if divisor == math.prod(after[o][1] for o in outputs if o != derived):
            plan[derived] = Follow(tuple(dims), divisor)
    elif numbers == outputs[-1:] and plan[outputs[-1]] > 1 and after[outputs[0]][0] != after[outputs[0]][1]:
        plan[outputs[-1]] = Follow(tuple(dims), 0)  # (B, C) -> (B * heads, C / heads), as attention does it


def align(
    before: Sequence[tuple[int, int]], after: Sequence[tuple[int, int]]
) -> list[tuple[list[int], list[int]]] | None:
    """Smallest groups of input and output dimensions with equal products in both lanes; dimensions of 1 are left out.

    >>> align([(5, 3), (8, 8), (7, 7)], [(5, 3), (56, 56)])
    [([0], [0]), ([1, 2], [1])]
    """
    left = [i for i, n in enumerate(before) if n != (1, 1)]
    right = [i for i, n in enumerate(after) if n != (1, 1)]
    groups: list[tuple[list[int], list[int]]] = []
    while left or right:
        ins, outs = ([left.pop(0)] if left else []), ([right.pop(0)] if right else [])
        while (a := _product(before, ins)) != (b := _product(after, outs)):
            grow, rest = (ins, left) if a <= b else (outs, right)
            if not rest:
                grow, rest = (outs, right) if grow is ins else (ins, left)
            if not rest:
                return None
            grow.append(rest.pop(0))
        groups.append((ins, outs))
    return groups


def _product(shape: Sequence[tuple[int, int]], dims: list[int]) -> tuple[int, int]:
    return math.prod(shape[i][0] for i in dims), math.prod(shape[i][1] for i in dims)


def _expand(node: fx.Node) -> int:
    """Sizes that do not expand are ``-1``."""
    source, sizes = node.args[0], node.args[1]
    if not isinstance(source, fx.Node) or not isinstance(sizes, tuple | list):
        return 0
    have = _shapes(source)
    offset = len(sizes) - len(have)
    new = tuple(
        -1 if i >= offset and have[i - offset] == after and after != (1, 1) else size
        for i, (size, after) in enumerate(zip(sizes, _shapes(node), strict=True))
    )
    node.args = (source, new)
    return int(new != tuple(sizes))


def _split(edit: Editor, node: fx.Node) -> int:
    """A split into equal parts is a ``chunk``; others keep their sizes."""
    named = dict(zip(("tensor", "split_size_or_sections", "dim"), node.args, strict=False)) | node.kwargs
    sizes = named.get("split_size_or_sections", named.get("split_size"))
    source, dim = node.args[0], named.get("dim", 0)
    if not isinstance(source, fx.Node) or not isinstance(dim, int):
        return 0
    parts = [part.shape[dim] for part in node.meta[PROBE][0]]
    literal = all(isinstance(s, int) for s in (sizes if isinstance(sizes, tuple | list) else [sizes]))
    if not literal or _shapes(source)[dim][0] != _shapes(source)[dim][1]:
        return 0
    if len(set(parts)) > 1 or not parts:
        _note(edit, node, f"a split into {parts} keeps its sizes")
        return 0
    node.target, node.args, node.kwargs = torch.chunk, (source, len(parts), dim), {}
    return 1


def _unflatten(node: fx.Node) -> int:
    """All but the innermost part keep their sizes."""
    sizes = node.args[2] if len(node.args) > 2 else None
    if not isinstance(sizes, tuple | list) or not all(isinstance(s, int) and s > 0 for s in sizes):
        return 0
    node.args = (*node.args[:2], (*sizes[:-1], -1))
    return 1


def _pad(edit: Editor, node: fx.Node) -> None:
    """Channels that are padded (two spatial dimensions follow them) stay as many."""
    amounts = node.args[1] if len(node.args) > 1 else node.kwargs.get("pad")
    if isinstance(amounts, tuple | list) and any(isinstance(n, int) and n for n in amounts[4:]):
        _note(edit, node, f"a pad keeps its amounts {list(amounts)}")


def _norm(edit: Editor, node: fx.Node) -> int:
    shape = node.args[1] if len(node.args) > 1 else node.kwargs.get("normalized_shape")
    source = node.args[0]
    if not isinstance(shape, tuple | list) or not isinstance(source, fx.Node):
        return 0
    if not any(isinstance(s, int) for s in shape):
        return 0
    rank = source.meta[PROBE][0].dim()
    sizes = tuple(edit.size(source, rank - len(shape) + i) for i in range(len(shape)))
    kwargs = {k: v for k, v in node.kwargs.items() if k != "normalized_shape"}
    node.args, node.kwargs = (source, sizes, *node.args[2:]), kwargs
    return 1


def _tiles_to_chunks(edit: Editor) -> int:
    """Slices with fixed bounds that cut one dimension into equal parts are a ``chunk``."""
    found: dict[tuple[fx.Node, int], list[tuple[int, int, fx.Node]]] = {}
    for node in edit.graph.nodes:
        cut = _fixed_slice(node)
        if cut is not None:
            found.setdefault((node.args[0], cut[0]), []).append((*cut[1:], node))
    changes = 0
    for (source, dim), cuts in found.items():
        total = _shapes(source)[dim]
        bounds = sorted({cut[:2] for cut in cuts})
        width = total[0] // len(bounds)
        tiling = [(i * width, (i + 1) * width) for i in range(len(bounds))]
        if len(bounds) < 2 or bounds != tiling or bounds[-1][1] != total[0] or total[0] != total[1]:
            continue
        with edit.at(source, after=True):
            chunks = edit.call(torch.chunk, source, len(bounds), dim)
        for start, stop, node in cuts:
            node.args = (chunks, tiling.index((start, stop)))
            changes += 1
    return changes


def _fixed_slice(node: fx.Node) -> tuple[int, int, int] | None:
    """``(dim, start, stop)`` of an indexing that takes one slice with fixed bounds and everything else whole."""
    if node.op != "call_function" or node.target is not operator.getitem:
        return None
    source, index = node.args
    if not isinstance(source, fx.Node) or not isinstance(source.meta[PROBE][0], Tensor) or not isinstance(index, tuple):
        return None
    rank = source.meta[PROBE][0].dim()
    if Ellipsis in [i for i in index if not isinstance(i, fx.Node)]:
        at = [i is Ellipsis for i in index].index(True)
        index = (*index[:at], *[slice(None)] * (rank - len(index) + 1), *index[at + 1 :])
    cuts = [(d, i) for d, i in enumerate(index) if not (isinstance(i, slice) and i == slice(None))]
    if len(cuts) != 1 or not isinstance(cuts[0][1], slice) or any(i is None or isinstance(i, fx.Node) for i in index):
        return None
    dim, cut = cuts[0]
    if any(isinstance(b, fx.Node) for b in (cut.start, cut.stop, cut.step)) or cut.step not in (None, 1):
        return None
    start, stop, _ = cut.indices(source.meta[PROBE][0].shape[dim])
    return dim, start, stop


def share_sizes(module: fx.GraphModule) -> int:
    """One node per size and per number computed from sizes."""
    seen: dict[Any, fx.Node] = {}
    changes = 0
    for node in list(module.graph.nodes):
        if node.op not in {"call_method", "call_function"} or not isinstance(node.meta[PROBE][0], int):
            continue
        key = (node.target, node.args, tuple(node.kwargs.items()))
        if key in seen:
            node.replace_all_uses_with(seen[key])
            module.graph.erase_node(node)
            changes += 1
        else:
            seen[key] = node
    return changes
