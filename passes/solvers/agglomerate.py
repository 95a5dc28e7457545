"""Greedy agglomeration: join the two nearest groups until the wanted number is left.

The state is the Gram matrix of the groups' means, ``C_gh = <t_g, t_h>``, and their masses. Joining g and h gives
``t = (S_g t_g + S_h t_h) / (S_g + S_h)``, so the new row of ``C`` is the same mean of two rows. A measure turns one row
of ``C`` into costs. Every row remembers its cheapest partner, so a join costs ``O(K)`` apart from the few rows whose
partner has gone: ``O(K^2)`` in practice for K groups.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
Measure = Callable[[Array, float, Array, float, Array], Array]
"""Costs of joining one group with all others: ``(row of C, own energy, energies, own mass, masses) -> K`` costs."""


def ward(row: Array, own: float, energy: Array, mass: float, masses: Array) -> Array:
    """``S_g S_h / (S_g + S_h) ||t_g - t_h||^2``: the growth of the weighted within-group sum of squares."""
    harmonic = mass * masses / (mass + masses)
    return np.asarray(harmonic * np.maximum(own + energy - 2 * row, 0.0))


def decorrelation(row: Array, own: float, energy: Array, mass: float, masses: Array) -> Array:  # noqa: ARG001
    """``1 - corr(t_g, t_h)`` where ``C`` is centred; two constants agree, a constant and a variable do not."""
    scale = np.sqrt(np.maximum(own, 0.0) * np.maximum(energy, 0.0))
    both_still = (own <= 0.0) & (energy <= 0.0)
    cosine = np.divide(row, scale, out=np.zeros_like(row), where=scale > 0)
    return np.where(both_still, 0.0, 1.0 - cosine)


def agglomerate(
    gram: Tensor, mass: Tensor, labels: Tensor, groups: int, measure: Measure = ward, apart: Tensor | None = None
) -> Tensor:
    """Join the groups of ``labels`` (``N``, numbered from 0) until ``groups`` are left; returns new labels.

    ``apart`` (``N``) gives every neuron a class; groups that share a class are joined only when nothing else is left.
    """
    state = _State(gram, mass, labels, measure, apart)
    while state.count > groups:
        state.join()
    return torch.from_numpy(state.resolve())[labels]


class _State:
    """The mutable part: ``C``, the cost matrix and every row's cheapest partner."""

    def __init__(self, gram: Tensor, mass: Tensor, labels: Tensor, measure: Measure, apart: Tensor | None) -> None:
        size = int(labels.max()) + 1
        total = mass.new_zeros(size).index_add_(0, labels, mass)
        rows = gram.new_zeros(size, gram.shape[1]).index_add_(0, labels, mass[:, None] * gram)
        inner = gram.new_zeros(size, size).index_add_(1, labels, rows * mass[None, :])
        self.means: Array = (inner / (total[:, None] * total[None, :])).numpy()
        self.mass: Array = total.numpy()
        self.measure = measure
        self.alive = np.ones(size, dtype=bool)
        self.parent = np.arange(size)
        self.count = size
        self.classes = None if apart is None else np.zeros((size, int(apart.max()) + 1), dtype=bool)
        if self.classes is not None and apart is not None:
            self.classes[labels.numpy(), apart.numpy()] = True
        self._compare()

    def _compare(self) -> None:
        """Fill the cost matrix and every row's cheapest partner."""
        size = len(self.mass)
        self.cost: Array = np.stack([self._row(g) if self.alive[g] else np.full(size, np.inf) for g in range(size)])
        self.best = self.cost.argmin(1)
        self.least: Array = self.cost[np.arange(size), self.best]

    def _row(self, g: int) -> Array:
        energy = self.means.diagonal()
        row = self.measure(self.means[g], float(energy[g]), energy, float(self.mass[g]), self.mass)
        row[~self.alive] = np.inf
        row[g] = np.inf
        if self.classes is not None:
            row[(self.classes & self.classes[g]).any(1)] = np.inf
        return row

    def join(self) -> None:
        """Join the cheapest pair."""
        first = int(self.least.argmin())
        if not np.isfinite(self.least[first]):
            self.classes = None
            self._compare()
            first = int(self.least.argmin())
        g, h = sorted((first, int(self.best[first])))
        share = self.mass[h] / (self.mass[g] + self.mass[h])
        merged = (1 - share) * self.means[g] + share * self.means[h]
        own = (1 - share) * merged[g] + share * merged[h]
        self.means[g], self.means[:, g] = merged, merged
        self.means[g, g] = own
        self.mass[g] += self.mass[h]
        self.alive[h] = False
        self.parent[h] = g
        self.count -= 1
        if self.classes is not None:
            self.classes[g] |= self.classes[h]
        self._refresh(g, h)

    def _refresh(self, g: int, h: int) -> None:
        self.cost[h], self.cost[:, h], self.least[h] = np.inf, np.inf, np.inf
        row = self._row(g)
        self.cost[g], self.cost[:, g] = row, row
        stale = self.alive & ((self.best == g) | (self.best == h))
        stale[g] = True
        better = self.alive & ~stale & (row < self.least)
        self.best[better], self.least[better] = g, row[better]
        lost = stale.nonzero()[0]
        self.best[lost] = self.cost[lost].argmin(1)
        self.least[lost] = self.cost[lost, self.best[lost]]

    def resolve(self) -> NDArray[np.int64]:
        """The surviving group of every first group, numbered from 0."""
        root = self.parent.copy()
        while (root[root] != root).any():
            root = root[root]
        return np.asarray(np.unique(root, return_inverse=True)[1], dtype=np.int64)
