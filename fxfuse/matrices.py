"""Merge and unmerge matrices in the form in which they multiply fastest.

Most of them are nearly empty: a permutation, a selection, groups to which each neuron belongs once. Where every row has
one entry at most, multiplying is picking; where a large matrix is sparse, it is adding up rows; elsewhere it is a dense
product. Forms are kept as long as the matrix lives: the same few matrices merge thousands of values.

Large and nearly empty matrices are themselves kept as torch's sparse tensors (:func:`compact`): a grouping of two times
5,120 neurons takes a third of a megabyte instead of 420. Of the matrices of a space inside another, ``A x B x m x n``,
only those of the pairs (fused block, parent's block) that belong together are kept.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

SPARSE = 16
"""A matrix is added up entry by entry if it has less than one entry in so many."""

LARGE = 1 << 18
"""Elements from which on it is: smaller ones are multiplied in no time."""

PORTION = 1 << 22
"""Elements that are weighted at a time while they are added up."""

KEPT = 1 << 20
"""Elements up to which a dense form is kept, in the values' precision beside the matrix itself."""

_forms: Any = WeakIdKeyDictionary()


@dataclass(frozen=True, slots=True)
class _Picked:
    """Row ``i`` has the one entry ``factor[i]`` in column ``columns[i]``; no ``factor``: all are one."""

    columns: Tensor
    factor: Tensor | None

    def times(self, x: Tensor, dim: int) -> Tensor:
        out = x.index_select(dim, self.columns)
        return out if self.factor is None else out * _along(self.factor, dim, x.dim())


@dataclass(frozen=True, slots=True)
class _Summed:
    """Entry ``k`` stands in row ``rows[k]`` and column ``columns[k]``."""

    rows: Tensor
    columns: Tensor
    entries: Tensor
    size: int

    def times(self, x: Tensor, dim: int) -> Tensor:
        x = x.movedim(dim, 0)
        out = x.new_zeros(self.size, *x.shape[1:])
        some = max(1, PORTION * len(x) // max(1, x.numel()))
        for rows, columns, entries in zip(
            *(torch.split(part, some) for part in (self.rows, self.columns, self.entries)), strict=True
        ):
            out.index_add_(0, rows, x.index_select(0, columns).mul_(_along(entries, 0, x.dim())))
        return out.movedim(0, dim)


@dataclass(frozen=True, slots=True)
class _Dense:
    matrix: Tensor

    def times(self, x: Tensor, dim: int) -> Tensor:
        product: Tensor = torch.tensordot(x, self.matrix, dims=([dim], [1]))
        return product.movedim(-1, dim)


def compact(matrix: Tensor) -> Tensor:
    """The same matrix, sparse (COO) where it is large and nearly empty."""
    if matrix.is_sparse or matrix.ndim != 2 or matrix.numel() < LARGE:
        return matrix
    if int(matrix.count_nonzero()) * SPARSE > matrix.numel():
        return matrix
    return matrix.to_sparse(2).coalesce()


def blocks(pairs: Mapping[tuple[int, int], Tensor], shape: tuple[int, int, int, int]) -> Tensor:
    """The matrices ``A x B x m x n`` (float64) with these (``m x n``) at their pairs ``(a, b)`` and zeros elsewhere;
    sparse in the pairs where that saves half of a large tensor."""
    if math.prod(shape) >= LARGE and 2 * len(pairs) <= shape[0] * shape[1]:
        places = torch.tensor(sorted(pairs), dtype=torch.long).reshape(-1, 2).T
        values = [pairs[a, b] for a, b in sorted(pairs)]
        entries = torch.stack(values).double() if values else torch.zeros(0, *shape[2:], dtype=torch.float64)
        return torch.sparse_coo_tensor(places, entries, shape, check_invariants=False, is_coalesced=True)
    out = torch.zeros(shape, dtype=torch.float64)
    for place, value in pairs.items():
        out[place] = value
    return out


def blocks_at(matrices: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The matrices of some pairs, ``K x m x n``."""
    if not matrices.is_sparse:
        return matrices[rows, columns]
    matrices = matrices.coalesce()
    (there, where), values = matrices.indices(), matrices.values()
    known, wanted = there * matrices.shape[1] + where, rows * matrices.shape[1] + columns  # sorted, for it is coalesced
    if not len(known):
        return values.new_zeros(len(wanted), *values.shape[1:])
    at = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
    return values[at].masked_fill((known[at] != wanted)[:, None, None], 0.0)


def dense(matrix: Tensor) -> Tensor:
    """The same matrix with all its zeros."""
    return matrix.to_dense() if matrix.is_sparse else matrix


def multiply(matrix: Tensor, x: Tensor, dim: int, *, transposed: bool = False) -> Tensor:
    """``matrix`` (or its transpose) times ``x`` along one dimension: ``x.shape[dim]`` becomes the matrix's rows.

    The product is made on the device and in the precision of ``x``.
    """
    known: dict[tuple[object, ...], _Picked | _Summed | _Dense] = _forms.setdefault(matrix, {})
    key = (transposed, x.device, x.dtype, matrix._version)
    form = known.get(key)
    if form is None:
        form = _form(matrix.detach().T if transposed else matrix.detach(), x)
        if not isinstance(form, _Dense) or matrix.numel() <= KEPT:
            known[key] = form
    return form.times(x, dim)


def multiply_blocks(outer: Tensor, inner: Sequence[tuple[int, Tensor, bool]], x: Tensor, at: int) -> Tensor:
    """Along an owner's dimension ``at`` and those that it owns, each with its matrices ``A x B x m x n``:

        y[a, i, ..] = sum_b outer[a, b] sum_j inner[a, b, i, j] x[b, j, ..]

    Where it is said that they are transposed, the matrices are ``inner[b, a, j, i]``. Pairs ``(a, b)`` without an
    entry cost nothing.
    """
    fused, own = outer.nonzero(as_tuple=True)
    if not len(fused):  # a parent of which nothing is taken: one pair of weight zero gives the shape
        fused = own = torch.zeros(1, dtype=torch.long, device=outer.device)
    pairs = x.movedim(at, 0).index_select(0, own.to(x.device))
    for dim, matrices, transposed in inner:
        moved = pairs.movedim(dim + (dim < at), 1)
        chosen = blocks_at(matrices, own, fused).mT if transposed else blocks_at(matrices, fused, own)
        moved = torch.einsum("kij,kj...->ki...", chosen.to(x.device, x.dtype), moved)
        pairs = moved.movedim(1, dim + (dim < at))
    share = torch.zeros(len(outer), len(fused), dtype=outer.dtype, device=outer.device)
    share[fused, torch.arange(len(fused))] = outer[fused, own]
    return multiply(share, pairs, 0).movedim(0, at)


def _form(matrix: Tensor, x: Tensor) -> _Picked | _Summed | _Dense:
    if matrix.is_sparse:
        matrix = matrix.coalesce()
        (rows, columns), entries = matrix.indices(), matrix.values()
    else:
        rows, columns = matrix.nonzero(as_tuple=True)
        entries = matrix[rows, columns]
    counts = torch.bincount(rows, minlength=len(matrix))
    if int(counts.max()) <= 1:
        picked = torch.zeros(len(matrix), dtype=torch.long, device=matrix.device)
        picked[rows] = columns
        factor = torch.zeros(len(matrix), dtype=matrix.dtype, device=matrix.device)
        factor[rows] = entries
        plain = bool((factor == 1).all())
        return _Picked(picked.to(x.device), None if plain else factor.to(x.device, x.dtype))
    # Adding up is not reproducible on CUDA, where the dense product is fast.
    if x.device.type == "cpu" and matrix.numel() >= LARGE and len(rows) * SPARSE <= matrix.numel():
        return _Summed(rows, columns, entries.to(x.dtype), len(matrix))
    return _Dense(dense(matrix).to(x.device, x.dtype))


def _along(values: Tensor, dim: int, dims: int) -> Tensor:
    return values.reshape([-1 if i == dim else 1 for i in range(dims)])
