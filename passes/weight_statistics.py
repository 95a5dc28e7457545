"""Statistics of a neuron space from the weights: no data is needed.

Let ``W_p`` be a parameter of parent ``p`` that has the space along one dimension. The slices of its neurons,

    w_p,i = vec( W_p[.., i, ..] brought into the common frame along every other dimension ),

are compared across parents. A dimension in another space ``b`` comes into the frame of the fused network by what the
groupings so far say: read (an input side) ``W U_b,p``, written ``diag(1 / M_b,p 1) M_b,p W``, which are the same where
the matrices are permutations. Pinned dimensions agree as they are. With ``X`` the slices of all parents, features by
neurons, one column per neuron,

    gram = sum over parameters  X' X / R,        R the number of features of all parameters together,

is the Gram matrix that the solvers know from activations, and its largest trace over permutations is the objective of
weight matching in Git Re-Basin. Every parameter is first divided by the root of its mean square over all parents: an
entry of a wide layer, whose weights are small, says as much as one of a narrow layer. ``part = "written"`` counts only
what makes a neuron (incoming weights, biases, norms' scales and shifts), as OTFusion does; ``"all"`` its readers, too.

A dimension whose frame is not known makes the parameter say nothing yet, or, where nothing else would be left
(``foreign = "sort"``), its entries are sorted, which does not depend on their order.

Memory: the slices of one parameter of each parent, and one ``N x N`` matrix.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fxfuse.errors import MethodError
from fxfuse.layouts import spaces_in
from fxfuse.matrices import dense, multiply, multiply_blocks
from fxfuse.passes.correspond import Correspondence
from fxfuse.passes.importance import FLOOR, WITHOUT_DATA, ImportanceName, norm_product
from fxfuse.products import Products
from fxfuse.types import Concat, Grouping, Layout, Leaf, Product, Space, SpaceStatistics, TensorAxes

Part = Literal["written", "all"]
Foreign = Literal["skip", "sort"]


@dataclass(frozen=True, slots=True)
class Slices:
    """The slices of a space's neurons in one occurrence in one parameter: ``x`` is features x neurons, and ``written``
    says whether they make the neurons or read them."""

    name: str
    written: bool
    x: Tensor


@dataclass(frozen=True, slots=True)
class Frames:
    """The way of one parent's neurons into the fused network's, ``m x n`` per space (``M x B x m x n`` inside another).

    ``sizes`` are what sorted dimensions are brought to.
    """

    read: Mapping[int, Tensor]
    written: Mapping[int, Tensor]
    outer: Mapping[int, int | None]
    sizes: Mapping[int, int]

    def side(self, dim: int, space: int, axes: TensorAxes) -> Tensor | None:
        """The matrix for a dimension of a parameter, if it is known."""
        return (self.read if (dim, space) in axes.reads else self.written).get(space)


def frames_of(groupings: Mapping[int, Grouping], spaces: Sequence[Space], parent: int) -> Frames:
    """The frames that the groupings of some spaces give to one parent."""
    read, written = {}, {}
    for number, grouping in groupings.items():
        merge, unmerge = (dense(side[parent]).double() for side in (grouping.merge, grouping.unmerge))
        total = merge.sum(-1, keepdim=True)
        mean = torch.where(total.abs() > 1e-12, merge / torch.where(total.abs() > 1e-12, total, 1.0), 0.0)
        written[number] = mean
        read[number] = unmerge.T if unmerge.ndim == 2 else unmerge.permute(1, 0, 3, 2)
    return Frames(read, written, {space.id: space.outer for space in spaces}, {s.id: s.size for s in spaces})


@dataclass(slots=True)
class _Path:
    """A tensor on its way: per dimension what is left of its layout and the parameter's dimension it came from."""

    x: Tensor
    layouts: list[Layout]
    dims: list[int]

    def replaced(self, x: Tensor, at: int, layouts: Sequence[Layout]) -> "_Path":
        dims = [self.dims[at]] * len(layouts)
        return _Path(
            x,
            [*self.layouts[:at], *layouts, *self.layouts[at + 1 :]],
            [*self.dims[:at], *dims, *self.dims[at + 1 :]],
        )


def leaf_paths(x: Tensor, axes: TensorAxes) -> Iterator[_Path]:
    """The parts of a tensor whose every dimension is one leaf: products opened, concatenations taken apart."""
    pending = [_Path(x, list(axes.dims), list(range(len(axes.dims))))]
    while pending:
        path = pending.pop()
        at = next((i for i, layout in enumerate(path.layouts) if not isinstance(layout, Leaf)), None)
        if at is None:
            yield path
            continue
        layout = path.layouts[at]
        if isinstance(layout, Product):
            sizes = [part.size for part in layout.parts]
            shape = [*path.x.shape[:at], *sizes, *path.x.shape[at + 1 :]]
            pending.append(path.replaced(path.x.reshape(shape), at, layout.parts))
        elif isinstance(layout, Concat):
            pieces = torch.split(path.x, [part.size for part in layout.parts], at)
            found = [path.replaced(x, at, [part]) for x, part in zip(pieces, layout.parts, strict=True)]
            pending.extend(reversed(found))


def slices(
    x: Tensor, axes: TensorAxes, space: Space, frames: Frames, *, part: Part = "all", foreign: Foreign = "skip"
) -> Iterator[tuple[bool, Tensor]]:
    """The slices of a space's neurons in one tensor, features x neurons (block after block inside another space), for
    every occurrence that says something; and whether it is written there."""
    for path in leaf_paths(x, axes):
        leaves = [layout.space if isinstance(layout, Leaf) else None for layout in path.layouts]
        for at in (i for i, number in enumerate(leaves) if number == space.id):
            written = (path.dims[at], space.id) not in axes.reads
            found = _slice(path, axes, space, at, frames, foreign) if written or part == "all" else None
            if found is not None:
                yield written, found


def _slice(path: _Path, axes: TensorAxes, space: Space, at: int, frames: Frames, foreign: Foreign) -> Tensor | None:
    leaves = [layout.space if isinstance(layout, Leaf) else None for layout in path.layouts]
    kept = [at]
    if space.outer is not None:
        owners = [i for i, number in enumerate(leaves) if number == space.outer]
        if len(owners) != 1:
            return None
        kept = [owners[0], at]
    others = [i for i in range(len(leaves)) if i not in kept]
    x = path.x.permute(*others, *kept)
    numbers = [leaves[i] for i in others]
    dims = [path.dims[i] for i in others]
    framed = _framed(x, numbers, dims, axes, frames, foreign)
    return None if framed is None else framed.reshape(-1, framed.shape[-1] * (framed.shape[-2] if len(kept) > 1 else 1))


def _framed(
    x: Tensor, numbers: list[int | None], dims: list[int], axes: TensorAxes, frames: Frames, foreign: Foreign
) -> Tensor | None:
    """The leading dimensions of ``x``, which lie in the spaces ``numbers``, in the common frame."""
    for i, number in enumerate(numbers):
        if number is None or (frames.outer[number] is not None and frames.outer[number] in numbers):
            continue  # what lies inside another space goes with its owner
        inner = [j for j, other in enumerate(numbers) if other is not None and frames.outer[other] == number]
        sides = [frames.side(dims[j], numbers[j] or 0, axes) for j in (i, *inner)]
        known = frames.outer[number] is None and (not inner or numbers.count(number) == 1)
        if known and all(side is not None for side in sides):
            matrices = [side.to(x.dtype) for side in sides if side is not None]
            own = [(j, matrix, False) for j, matrix in zip(inner, matrices[1:], strict=True)]
            x = multiply_blocks(matrices[0], own, x, i) if inner else multiply(matrices[0], x, i)
        elif foreign == "skip":
            return None
        else:
            for j in (*inner, i):
                x = _resampled(_sorted(x, j), j, frames.sizes[numbers[j] or 0])
    return x


def _sorted(x: Tensor, at: int) -> Tensor:
    """Ascending along one dimension; numpy's sort is ten times as fast as torch's on the CPU."""
    return torch.from_numpy(np.sort(x.numpy(), axis=at))


def _resampled(x: Tensor, at: int, size: int) -> Tensor:
    """``size`` evenly spread entries along a sorted dimension."""
    own = x.shape[at]
    if own == size:
        return x
    return x.index_select(at, ((torch.arange(size) + 0.5) * (own / size)).long())


def in_common_frame(x: Tensor, axes: TensorAxes, frames: Frames) -> Iterator[Tensor]:
    """The parts of a tensor with every dimension in the common frame (those of unknown spaces sorted)."""
    for path in leaf_paths(x, axes):
        leaves = [layout.space if isinstance(layout, Leaf) else None for layout in path.layouts]
        framed = _framed(path.x, leaves, path.dims, axes, frames, "sort")
        assert framed is not None
        yield framed


# ------------------------------------------------------------------------------------------------ statistics


Scales = Mapping[str, float]
"""What each parameter is multiplied by."""


def parameter_names(pairs: Correspondence) -> tuple[str, ...]:
    """The reference's parameters that every parent has, tied ones once."""
    module = pairs.reference.program.module
    names = [name for name, p in module.named_parameters() if p.is_floating_point()]
    return tuple(n for n in names if n in pairs.reference.axes.state and all(n in known for known in pairs.names))


def parameters(pairs: Correspondence, parent: int, scales: Scales) -> Iterator[tuple[str, Tensor, TensorAxes]]:
    """A parent's parameters by the reference's names, scaled, in single precision or better."""
    own = pairs.parents[parent]
    state = own.program.module.state_dict()
    for name, scale in scales.items():
        theirs = pairs.names[parent][name]
        x = state[theirs].detach()
        yield name, x.to(torch.promote_types(x.dtype, torch.float32)) * scale, own.axes.state[theirs]


def parameter_scales(pairs: Correspondence) -> Scales:
    """One over the root of each parameter's mean square over all parents; 1 where all are zero."""
    states = [parent.program.module.state_dict() for parent in pairs.parents]
    out = {}
    for name in parameter_names(pairs):
        squares = [
            state[own[name]].detach().double().square().mean() for state, own in zip(states, pairs.names, strict=True)
        ]
        energy = float(torch.stack(squares).mean())
        out[name] = energy**-0.5 if energy > 0 else 1.0
    return out


def _spaces_of(axes: TensorAxes) -> set[int]:
    return {number for layout in axes.dims for number in spaces_in(layout)}


def objective(
    pairs: Correspondence, groupings: Mapping[int, Grouping], weights: tuple[float, ...], scales: Scales
) -> float:
    """``sum_{p < q} w_p w_q sum over parameters <W_p, W_q>`` with all parents in the common frame."""
    spaces = pairs.reference.axes.spaces
    frames = [frames_of(groupings, spaces, p) for p in range(len(weights))]
    total = 0.0
    for rows in zip(*(parameters(pairs, p, scales) for p in range(len(weights))), strict=True):
        framed = [in_common_frame(x, axes, frame) for (_, x, axes), frame in zip(rows, frames, strict=True)]
        for parts in zip(*framed, strict=True):
            shares = [weight * part for weight, part in zip(weights, parts, strict=True)]
            whole = torch.stack(shares).sum(0)
            total += float(whole.square().sum() - sum(share.square().sum() for share in shares)) / 2
    return total


def parent_slices(
    pairs: Correspondence, parent: int, space: Space, frames: Frames, scales: Scales, *, part: Part, foreign: Foreign,
    tensors: Mapping[str, Tensor] | None = None,
) -> Iterator[Slices]:  # fmt: skip
    """All slices of a space's neurons in one parent's parameters, or in ``tensors`` of the same meaning."""
    holding = {name: s for name, s in scales.items() if space.id in _spaces_of(pairs.reference.axes.state[name])}
    for name, x, axes in parameters(pairs, parent, holding):
        if tensors is not None:
            x = tensors[name]  # noqa: PLW2901
        for written, found in slices(x, axes, space, frames, part=part, foreign=foreign):
            yield Slices(name, written, found)


def weight_statistics(
    pairs: Correspondence,
    space: Space,
    groupings: Mapping[int, Grouping],
    weights: tuple[float, ...],
    scales: Scales,
    *,
    part: Part = "all",
    foreign: Foreign = "skip",
    importance: ImportanceName = "uniform",
) -> SpaceStatistics | None:
    """Statistics of one space from the parents' parameters, given the groupings of other spaces; ``None`` where no
    parameter tells anything.

    ``rows`` is the number of features. ``importance`` is one that needs no data; norms are those of the slices in the
    common frame, and are scaled over all parents together, because they are in one unit: so a parent's importance sums
    to its weight only on average.
    """
    spaces, count = pairs.reference.axes.spaces, len(pairs.parents)
    own = [parent.axes.spaces[space.id] for parent in pairs.parents]
    blocks = [1 if space.outer is None else parent.axes.spaces[space.outer].size for parent in pairs.parents]
    norms: list[tuple[bool, Tensor]] = []
    parts: list[Tensor] = []
    frames = [frames_of(groupings, spaces, p) for p in range(count)]
    found = [parent_slices(pairs, p, own[p], frames[p], scales, part=part, foreign=foreign) for p in range(count)]
    for same in zip(*found, strict=True):
        parts.append(torch.cat([slices.x for slices in same], 1))
        norms.append((same[0].written, parts[-1].square().sum(0).double() / scales[same[0].name] ** 2))
    rows = sum(len(x) for x in parts)
    if not rows:
        return None
    return SpaceStatistics(
        space=space.id,
        widths=tuple(s.size for s in own),
        outer_widths=tuple(blocks),
        rows=rows,
        mean=torch.stack([x.sum(0).double() for x in parts]).sum(0) / rows,
        products=Products.of(parts),
        importance=_scaled(_scores(norms, importance), [s.size * b for s, b in zip(own, blocks, strict=True)], weights),
    )


def _scores(norms: Sequence[tuple[bool, Tensor]], importance: ImportanceName) -> Tensor:
    """Raw importance of every neuron from the squared norms of its slices."""
    parts = [norm for _, norm in norms]
    if importance == "uniform":
        return torch.ones_like(parts[0])
    if importance == "magnitude":
        return torch.stack(parts).mean(0)
    if importance == "norm-product":
        return norm_product(norms)
    raise MethodError(
        f"importance {importance!r} looks at data, but this method looks at weights only: take one of "
        f"{', '.join(repr(name) for name in WITHOUT_DATA)}, or statistics 'activations'"
    )


def _scaled(scores: Tensor, sizes: Sequence[int], weights: tuple[float, ...]) -> Tensor:
    """Every parent's scores times its weight, the mean over parents of their sums made one; evened a little."""
    parts = [weight * own for weight, own in zip(weights, torch.split(scores, list(sizes)), strict=True)]
    even = [torch.full_like(own, weight / len(own)) for weight, own in zip(weights, parts, strict=True)]
    whole = float(sum(part.sum() for part in parts))
    if whole <= 0:
        return torch.cat(even)
    scale = (1 - FLOOR) * sum(weights) / whole
    return torch.cat([scale * part + FLOOR * rest for part, rest in zip(parts, even, strict=True)])
