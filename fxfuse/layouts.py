"""Tensors seen through their layouts: merge the parents' tensors through groupings, read neurons off a value.

With ``M_p`` and ``U_p`` the merge and unmerge matrices of parent ``p``, a tensor that is written along spaces
``a, b, ...`` and read along ``c, ...`` is fused as

    W[i, j, .., k, ..] = sum_p  M_a,p[i, i'] M_b,p[j, j'] .. U_c,p[k', k] ..  W_p[i', j', .., k', ..]  /  D[i, j, ..]

where ``D = sum_p (M_a,p 1)[i] (M_b,p 1)[j] ..`` makes the coefficients of the written side sum to one; with a single
written space the merge rows already do. A part of a tensor that is written along no space (a head's classes) takes the
parents' weights instead. Where a space is owned by another, its matrices depend on the pair (fused owner, parent
owner), and the sum runs over those pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxfuse.matrices import compact, dense, multiply, multiply_blocks
from fxfuse.types import Concat, Grouping, Layout, Leaf, Product, Space, TensorAxes


@dataclass(frozen=True, slots=True)
class _Axis:
    """One dimension on the way through the recursion; ``dim`` is the tensor dimension that it came from."""

    layout: Layout
    dim: int


@dataclass(frozen=True, slots=True)
class Merger:
    """The way of one parent's tensors into the fused network."""

    parent: int
    weight: float
    groupings: Mapping[int, Grouping]
    outer: Mapping[int, int | None]

    def tensor(self, x: Tensor, axes: TensorAxes, *, singleton_reads: bool = False) -> Tensor:
        """The parent's share of the fused tensor. ``singleton_reads``: ``x`` has size 1 along what is read."""
        return self._merge(x, [_Axis(layout, i) for i, layout in enumerate(axes.dims)], axes, singleton_reads)

    def _merge(self, x: Tensor, path: list[_Axis], axes: TensorAxes, ones: bool) -> Tensor:
        """Products are opened, concatenations taken apart, until every axis is a leaf."""
        for kind, open_ in ((Product, self._product), (Concat, self._segments)):
            for position, axis in enumerate(path):
                if isinstance(axis.layout, kind):
                    return open_(x, path, position, axes, ones)
        return self._leaves(x, path, axes, ones)

    def _product(self, x: Tensor, path: list[_Axis], at: int, axes: TensorAxes, ones: bool) -> Tensor:
        layout = path[at].layout
        assert isinstance(layout, Product)
        sizes = [_unread(part, path[at].dim, axes) if ones else part.size for part in layout.parts]
        x = x.reshape([*x.shape[:at], *sizes, *x.shape[at + 1 :]])
        inner = [_Axis(part, path[at].dim) for part in layout.parts]
        out = self._merge(x, [*path[:at], *inner, *path[at + 1 :]], axes, ones)
        return out.flatten(at, at + len(inner) - 1)

    def _segments(self, x: Tensor, path: list[_Axis], at: int, axes: TensorAxes, ones: bool) -> Tensor:
        layout = path[at].layout
        assert isinstance(layout, Concat)
        out, start = [], 0
        for part in layout.parts:
            size = _unread(part, path[at].dim, axes) if ones else part.size
            piece = x.narrow(at, start, size)
            start += size
            out.append(self._merge(piece, [*path[:at], _Axis(part, path[at].dim), *path[at + 1 :]], axes, ones))
        return torch.cat(out, at)

    def _leaves(self, x: Tensor, path: list[_Axis], axes: TensorAxes, ones: bool) -> Tensor:
        """Every space along its own dimension; those that an owner's dimension decides about, together with it."""
        spaces = [axis.layout.space if isinstance(axis.layout, Leaf) else None for axis in path]
        read = [space is not None and (axis.dim, space) in axes.reads for space, axis in zip(spaces, path, strict=True)]
        owned: dict[int, list[int]] = {}
        for position, space in enumerate(spaces):
            if space is not None and self.outer[space] is not None:
                owned.setdefault(self._owner(position, spaces, path), []).append(position)
        inside = {position for inner in owned.values() for position in inner}
        for position, space in enumerate(spaces):
            if space is None or position in inside:
                continue
            matrix = self._matrix(space, read[position])
            if position in owned:
                inner = {at: (self._matrix(spaces[at], read[at]), read[at]) for at in owned[position]}
                x = _owned(x, position, dense(matrix), read[position], inner, ones)
            elif read[position] and ones:
                x = _spread(x, position, matrix.shape[1])
            else:
                x = multiply(matrix, x, position, transposed=read[position])
        written = any(space is not None and not is_read for space, is_read in zip(spaces, read, strict=True))
        return x if written else x * self.weight

    def _owner(self, position: int, spaces: list[int | None], path: list[_Axis]) -> int:
        """Where the owner of the space at ``position`` lies: in the same dimension of the tensor, or else another."""
        space = spaces[position]
        assert space is not None
        there = [at for at, other in enumerate(spaces) if other is not None and other == self.outer[space]]
        return next((at for at in there if path[at].dim == path[position].dim), there[0])

    def _matrix(self, space: int | None, read: bool) -> Tensor:
        """The merge matrix of what is written, the unmerge matrix (parent by fused neurons) of what is read; those of
        all pairs of blocks for a space inside another."""
        assert space is not None
        grouping = self.groupings[space]
        return (grouping.unmerge if read else grouping.merge)[self.parent]


def _owned(
    x: Tensor, at: int, matrix: Tensor, read: bool, inner: Mapping[int, tuple[Tensor, bool]], ones: bool
) -> Tensor:
    """Along an owner's dimension ``at`` and those inside it: their matrices and whether what is read is, by dimension.
    Unmerge matrices are the parent's by the fused network's: they are multiplied by transposed."""
    if read:
        matrix = matrix.T
        x = _spread(x, at, matrix.shape[1]) if ones else x
    repeated = [dim for dim, (_, is_read) in inner.items() if is_read and ones]
    x = multiply_blocks(matrix, [(dim, *inner[dim]) for dim in inner if dim not in repeated], x, at)
    for dim in repeated:
        x = _spread(x, dim, inner[dim][0].shape[3])
    return x


def _spread(x: Tensor, dim: int, size: int) -> Tensor:
    """``x``, of size 1 along ``dim``, repeated there."""
    return x.expand([size if i == dim else n for i, n in enumerate(x.shape)])


def merge_tensors(
    tensors: Sequence[Tensor],
    axes: Sequence[TensorAxes],
    spaces: Sequence[Space],
    groupings: Mapping[int, Grouping],
    weights: Sequence[float],
) -> Tensor:
    """The fused tensor of one per parent (module docstring's formula); ``axes[p]`` has parent ``p``'s own sizes."""
    outer = {space.id: space.outer for space in spaces}
    total: Tensor | None = None
    mass: Tensor | None = None
    shared = _written_spaces(axes[0], outer) > 1
    for parent, (x, meaning, weight) in enumerate(zip(tensors, axes, weights, strict=True)):
        merger = Merger(parent, weight, groupings, outer)
        part = merger.tensor(x, meaning)
        total = part if total is None else total + part
        if shared:
            ones = torch.ones([_unread(d, i, meaning) for i, d in enumerate(meaning.dims)], dtype=x.dtype)
            share = merger.tensor(ones.to(x.device), meaning, singleton_reads=True)
            mass = share if mass is None else mass + share
    assert total is not None
    if mass is not None:
        total = torch.where(
            mass.abs() > 1e-12, total / mass.where(mass.abs() > 1e-12, torch.ones_like(mass)), 0 * total
        )
    return total


def _unread(layout: Layout, dim: int, axes: TensorAxes) -> int:
    """Size of a dimension whose read parts count 1 each."""
    if isinstance(layout, Leaf):
        return 1 if layout.space is not None and (dim, layout.space) in axes.reads else layout.size
    sizes = [_unread(part, dim, axes) for part in layout.parts]
    if isinstance(layout, Concat):
        return sum(sizes)
    size = 1
    for part in sizes:
        size *= part
    return size


def _written_spaces(axes: TensorAxes, outer: Mapping[int, int | None]) -> int:
    """How many written, unowned spaces one element of the tensor may lie in."""

    def count(layout: Layout, dim: int) -> int:
        if isinstance(layout, Leaf):
            free = layout.space is not None and outer[layout.space] is None and (dim, layout.space) not in axes.reads
            return int(free)
        counts = [count(part, dim) for part in layout.parts]
        return max(counts) if isinstance(layout, Concat) else sum(counts)

    return sum(count(layout, dim) for dim, layout in enumerate(axes.dims))


# -------------------------------------------------------------------------------------------- observation


def neurons(value: Tensor, axes: TensorAxes, space: Space) -> list[Tensor]:
    """The neurons of ``space`` in ``value``, once per occurrence, as ``rows x n`` (``rows x (owners * n)``, block
    after block, for a space inside another).

    Rows run over everything else: samples, positions. Along a foreign space, whose order differs between parents, the
    entries are sorted: then rows compare across parents whatever that order is.
    """
    path = [_Axis(layout, i) for i, layout in enumerate(axes.dims)]
    return list(_occurrences(value, path, space))


def _occurrences(x: Tensor, path: list[_Axis], space: Space) -> list[Tensor]:
    for position, axis in enumerate(path):
        layout = axis.layout
        if isinstance(layout, Product):
            x = x.reshape([*x.shape[:position], *(part.size for part in layout.parts), *x.shape[position + 1 :]])
            inner = [_Axis(part, axis.dim) for part in layout.parts]
            return _occurrences(x, [*path[:position], *inner, *path[position + 1 :]], space)
    for position, axis in enumerate(path):
        layout = axis.layout
        if isinstance(layout, Concat):
            found: list[Tensor] = []
            start = 0
            relevant = _mentions(layout, space)
            for part in layout.parts:
                piece = x.narrow(position, start, part.size)
                start += part.size
                if not relevant or _mentions(part, space):
                    inner = [*path[:position], _Axis(part, axis.dim), *path[position + 1 :]]
                    found.extend(_occurrences(piece, inner, space))
            return found
    leaves = [axis.layout.space if isinstance(axis.layout, Leaf) else None for axis in path]
    if leaves.count(space.id) != 1 or (space.outer is not None and leaves.count(space.outer) != 1):
        return []
    kept = [leaves.index(space.id)] if space.outer is None else [leaves.index(space.outer), leaves.index(space.id)]
    for position, foreign in enumerate(leaves):
        if foreign is not None and position not in kept:
            x = x.sort(dim=position).values
    x = x.movedim(kept, list(range(-len(kept), 0)))
    return [x.reshape(-1, x.shape[-1] if len(kept) == 1 else x.shape[-2] * x.shape[-1])]


def _mentions(layout: Layout, space: Space) -> bool:
    if isinstance(layout, Leaf):
        return layout.space is not None and layout.space in (space.id, space.outer)
    return any(_mentions(part, space) for part in layout.parts)


def resized(layout: Layout, sizes: Mapping[int, int]) -> Layout:
    """The layout with other numbers of neurons per space."""
    if isinstance(layout, Leaf):
        return layout if layout.space is None else Leaf(sizes[layout.space], layout.space)
    return type(layout)(tuple(resized(part, sizes) for part in layout.parts))


def spaces_in(layout: Layout) -> list[int]:
    """The spaces of a layout from left to right, each as often as it occurs."""
    if isinstance(layout, Leaf):
        return [] if layout.space is None else [layout.space]
    return [space for part in layout.parts for space in spaces_in(part)]


def permutation_groupings(spaces: Sequence[Space], generator: torch.Generator) -> dict[int, Grouping]:
    """A random permutation of every space, as groupings of a single parent (each owner's neurons on their own)."""
    out: dict[int, Grouping] = {}
    for space in spaces:
        if space.outer is None:
            matrix = torch.eye(space.size, dtype=torch.float64)[torch.randperm(space.size, generator=generator)]
            out[space.id] = Grouping(space.id, (compact(matrix),), (compact(matrix.T.contiguous()),))
            continue
        blocks = next(s.size for s in spaces if s.id == space.outer)
        same = torch.eye(space.size, dtype=torch.float64)
        own = torch.stack([same[torch.randperm(space.size, generator=generator)] for _ in range(blocks)])
        merge = own.expand(blocks, *own.shape)
        out[space.id] = Grouping(space.id, (merge,), (merge.permute(1, 0, 3, 2),))
    return out
