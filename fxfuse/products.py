"""Inner products of neurons: their Gram matrix, or what it is made of until somebody asks for the matrix.

A matrix is what most solvers look at. Streamed activations leave one half of it, since it is symmetric; the other is
filled in when the matrix is wanted, so that of all spaces only the one at work takes ``N x N``. From weights the rows
are there, and whoever only needs the neurons' energies, or a few of their distances, is spared the products.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

BAND = 512
"""Rows and columns of a matrix that are worked on at a time."""

AT_ONCE = 1 << 24
"""Elements of rows x neurons that are multiplied at a time."""

PAIRS = 1 << 20
"""Pairs of neurons that are compared at a time."""

FEW = 16
"""Rows by which neurons are compared first."""


class Half:
    """A symmetric sum of products ``x' x`` (``N x N``, float64): bands of its rows, up to their diagonal blocks."""

    __slots__ = ("_bands", "_size")

    def __init__(self, size: int, device: torch.device | None = None) -> None:
        """All zero."""
        self._size = size
        ends = ((start, min(start + BAND, size)) for start in range(0, size, BAND))
        self._bands = [torch.zeros(end - start, end, dtype=torch.float64, device=device) for start, end in ends]

    def add(self, x: Tensor) -> None:
        """Add ``x' x`` for rows ``x`` (``rows x N``)."""
        for start, band in zip(range(0, self._size, BAND), self._bands, strict=True):
            band.add_(x[:, start : start + len(band)].T @ x[:, : band.shape[1]])

    def average(self, count: float) -> "Half":
        """Divide by ``count``, in place, and move to the CPU."""
        self._bands = [band.div_(count).cpu() for band in self._bands]
        return self

    def diagonal(self) -> Tensor:
        """``N``."""
        parts = [band[:, -len(band) :].diagonal() for band in self._bands]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)

    def whole(self) -> Tensor:
        """The matrix. The half is gone afterwards: its bands are let go of one by one."""
        matrix = torch.empty(self._size, self._size, dtype=torch.float64)
        for start in range(0, self._size, BAND):
            band = self._bands.pop(0)
            rows = slice(start, start + len(band))
            matrix[rows, : band.shape[1]] = band
            block = matrix[rows, rows]
            block.copy_((block + block.T) / 2)  # products may differ from their mirror image in the last place
            for other in range(0, start, BAND):  # block by block, which stays in the cache
                columns = slice(other, other + BAND)
                matrix[columns, rows] = matrix[rows, columns].T
        return matrix


class Products:
    """``<a_i, a_j> / rows`` of ``N`` neurons."""

    __slots__ = ("_energies", "_half", "_matrix", "_parts", "_rows")

    def __init__(self, matrix: Tensor | Half) -> None:
        """The products as a matrix (``N x N``, float64) on the CPU, or as one half of it."""
        self._matrix = None if isinstance(matrix, Half) else matrix
        self._half = matrix if isinstance(matrix, Half) else None
        self._energies: Tensor | None = None
        self._parts: tuple[Tensor, ...] = ()
        self._rows = 1

    @classmethod
    def of(cls, parts: Sequence[Tensor]) -> "Products":
        """The products of all rows of ``parts``, each ``rows x N`` and on the CPU."""
        found = cls(torch.empty(0, 0, dtype=torch.float64))
        found._matrix, found._parts, found._rows = None, tuple(parts), sum(len(x) for x in parts)
        return found

    @property
    def matrix(self) -> Tensor:
        """``N x N``, float64, symmetric; made when it is first asked for, in place of what it is made of."""
        if self._matrix is None:
            half = self._half or self._multiplied()
            self._half, self._parts = None, ()
            self._matrix = half.whole()
        return self._matrix

    def _multiplied(self) -> Half:
        size = self._parts[0].shape[1]
        half = Half(size)
        for part in self._parts:
            for x in torch.split(part, max(1, AT_ONCE // size)):
                half.add(x)
        return half.average(self._rows)

    @property
    def energies(self) -> Tensor:
        """``<a_i, a_i> / rows``: ``N``, float64."""
        if self._matrix is not None:
            return self._matrix.diagonal()
        if self._energies is None and self._half is not None:
            self._energies = self._half.diagonal()
        elif self._energies is None:
            squares = torch.stack([x.square().sum(0).double() for x in self._parts])
            self._energies = squares.sum(0) / self._rows
        return self._energies

    def close(self, within: float) -> tuple[Tensor, Tensor, Tensor]:
        """All pairs ``i < j`` with ``||a_i - a_j||^2 <= within * (||a_i||^2 + ||a_j||^2)``, and the ratio of the two.

        ``within`` is 1e-3 at most. Then norms of such a pair differ by less than ``1.45 sqrt(within)`` of the smaller,
        so that neurons in the order of their norms have few others to be compared with. Where many have, the matrix is
        made.
        """
        energies, order = self.energies.sort()
        norms, index = energies.clamp(min=0).sqrt(), torch.arange(len(energies))
        others = torch.searchsorted(norms, norms * (1 + 1.45 * within**0.5), right=True) - index - 1
        if int(others.sum()) > len(norms) ** 2 // 16:
            _ = self.matrix  # asking for it makes it, and the pairs are then read off it
        found = [(index[:0], index[:0], norms[:0])]
        for some in _portions(others):
            low, high = _followers(some, others[some])
            bound = energies[low] + energies[high]
            near, apart = self._near(order[low], order[high], within * bound)
            one, other = order[low[near]], order[high[near]]
            ratio = apart / bound[near].clamp(min=torch.finfo(torch.float64).tiny)
            found.append((torch.minimum(one, other), torch.maximum(one, other), ratio))
        first, second, ratio = (torch.cat(column) for column in zip(*found, strict=True))
        return first, second, ratio

    def _near(self, first: Tensor, second: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the listed pairs are no farther apart than ``bound``, and their squared distances."""
        near = torch.arange(len(first))
        if not self._parts:
            matrix, energies = self.matrix, self.energies
            apart = (energies[first] + energies[second] - 2 * matrix[first, second]).clamp_(min=0)
            near = near[apart <= bound]
            return near, apart[near]
        apart = torch.zeros(len(first), dtype=torch.float64)
        for x in (rows for part in self._parts for rows in (part[:FEW], part[FEW:])):  # a few rows tell most apart
            portions = torch.split(near, max(1, AT_ONCE // max(1, len(x))))
            more = [(x[:, first[some]] - x[:, second[some]]).square_().sum(0).double() for some in portions]
            apart = apart + torch.cat(more) / self._rows
            kept = apart <= bound[near]
            near, apart = near[kept], apart[kept]
            if not len(near):
                break
        return near, apart


def _followers(index: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Every ``k`` of ``index`` with each of the ``counts`` numbers that follow it: two columns of pairs."""
    first = index.repeat_interleave(counts)
    start = (counts.cumsum(0) - counts).repeat_interleave(counts)
    return first, first + 1 + torch.arange(len(first)) - start


def _portions(counts: Tensor) -> tuple[Tensor, ...]:
    """The indices of ``counts``, in portions over which it adds up to about :data:`PAIRS`."""
    sizes = torch.unique_consecutive(counts.cumsum(0) // PAIRS, return_counts=True)[1]
    return torch.split(torch.arange(len(counts)), sizes.tolist())
