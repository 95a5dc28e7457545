"""Groups the parents' neurons, space by space: statistics and a solver in, merge and unmerge matrices out.

An ordinary space goes to the solver as it is. A tree of spaces, an outer space H whose every neuron owns an ordering
of inner spaces D, is solved in two steps. First H, on the kernel of :mod:`fxfuse.passes.solvers.blocks`, in which
blocks are compared after the best alignment of their inside. Then, for every fused block a and every D, the blocks
that belong to a (those with a non-zero outer merge or unmerge) are pooled as if each were a parent with its share of
a as weight, and the same solver groups their neurons. With ``M`` the outer and ``m_q`` the inner solver's matrices of
member q = (p, b), ``r_a = sum_q M_a,q``, the flattened axis is to get ``r_a m_q``, so what is stored is ``m_q r_a /
M_a,q``: its product with the outer entry is right, and rows sum to what they should. Unmerging multiplies without
such a factor: a neuron is found in its block's fused blocks, and there among the neurons.

Spaces are independent of each other and of their order: each has a random generator made from the seed and its number.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxfuse.errors import DataError, GraphError, MethodError
from fxfuse.matrices import blocks
from fxfuse.passes.solvers.average import identity
from fxfuse.passes.solvers.blocks import as_blocks, member_statistics, outer_statistics
from fxfuse.passes.solvers.table import Solver, SolverName, check_options, find_solver
from fxfuse.passes.solvers.threads import one_thread
from fxfuse.types import Grouping, Space, SpaceStatistics


def group(
    spaces: Sequence[Space],
    statistics: Mapping[int, SpaceStatistics],
    widths: Mapping[int, tuple[int, ...]],
    targets: Mapping[int, int],
    solver: SolverName,
    options: Mapping[str, Any],
    weights: tuple[float, ...],
    seed: int,
) -> dict[int, Grouping]:
    """A grouping for every space, by its number: all that :func:`group_trees` yields, with its arguments and errors."""
    trees = group_trees(spaces, statistics, widths, targets, solver, options, weights, seed)
    return {number: grouping for tree in trees for number, grouping in tree.items()}


def group_trees(
    spaces: Sequence[Space],
    statistics: Mapping[int, SpaceStatistics],
    widths: Mapping[int, tuple[int, ...]],
    targets: Mapping[int, int],
    solver: SolverName,
    options: Mapping[str, Any],
    weights: tuple[float, ...],
    seed: int,
) -> Iterator[dict[int, Grouping]]:
    """The groupings by their spaces' numbers, an outermost space with all that lie inside it at a time. Statistics are
    looked up when it is their space's turn, so whoever iterates may let go of what has been used.

    ``widths[id]`` are the parents' sizes of a space and ``targets[id]`` the fused one (of an inner space: the size of
    one block). ``options`` go to the solver. ``weights`` are the parents' and need not sum to 1. A space without
    statistics (nobody observed it) keeps its order, which needs equal widths.

    Raises :class:`MethodError` for an unknown solver or option, or where widths do not allow what is asked;
    :class:`DataError` where statistics are not finite; :class:`GraphError` where spaces are nested more than once.
    """
    solve = find_solver(solver)
    check_options(solver, options)
    weights = _normalised(weights)
    by_id = {space.id: space for space in spaces}
    inner: dict[int, list[Space]] = {space.id: [] for space in spaces if space.outer is None}
    for space in spaces:
        if space.outer is not None:
            if space.outer not in inner:
                raise GraphError(f"space {space.name!r} must lie inside an outermost space. Got outer={space.outer}")
            inner[space.outer].append(space)
    for space in spaces:
        if space.id in statistics:
            _check_finite(space, statistics[space.id])
    task = _Task(solve, dict(options), weights, seed, widths, targets, statistics)
    for outer_id, children in inner.items():
        with one_thread():
            outer = task.outer(by_id[outer_id], children)
            tree = {outer_id: outer} | {child.id: task.inner(child, outer) for child in children}
        yield tree


def _normalised(weights: tuple[float, ...]) -> tuple[float, ...]:
    total = float(sum(weights))
    if not weights or not all(np.isfinite(weights)) or min(weights) < 0 or total <= 0:
        raise MethodError(f"parent weights must be finite, non-negative and not all zero. Got {weights}")
    return tuple(weight / total for weight in weights)


def _check_finite(space: Space, stats: SpaceStatistics) -> None:
    energies = stats.products.energies  # a neuron's products with others are finite where its own is
    for what, values in (("activations", energies), ("activations", stats.mean), ("importance", stats.importance)):
        if not bool(torch.isfinite(values).all()):
            raise DataError(
                f"{what} of space {space.name!r} must be finite, but the calibration data made some of them infinite "
                "or not a number; look for such inputs, or for weights that overflow"
            )


class _Task:
    """What all spaces of one call share."""

    def __init__(
        self,
        solve: Solver,
        options: dict[str, Any],
        weights: tuple[float, ...],
        seed: int,
        widths: Mapping[int, tuple[int, ...]],
        targets: Mapping[int, int],
        statistics: Mapping[int, SpaceStatistics],
    ) -> None:
        self._solve, self._options, self._weights, self._seed = solve, options, weights, seed
        self._widths, self._targets, self._statistics = widths, targets, statistics

    def outer(self, space: Space, children: Sequence[Space]) -> Grouping:
        """Group an outermost space by its inner spaces' statistics and its own, whichever exist."""
        own = self._statistics.get(space.id)
        parts = [self._statistics[child.id] for child in children if child.id in self._statistics]
        if not parts and own is None:
            return self._unobserved(space)
        if parts:
            stats = outer_statistics(space.id, [*parts, *([] if own is None else [as_blocks(own)])])
        else:
            assert own is not None
            stats = own
        if stats.widths != tuple(self._widths[space.id]):
            raise GraphError(
                f"statistics of space {space.name!r} have widths {stats.widths}, its parents {self._widths[space.id]}"
            )
        return self._run(space, stats, self._weights, self._options, space.id)

    def inner(self, space: Space, outer: Grouping) -> Grouping:
        """Group an inner space within every fused block of ``outer``: the matrices have four dimensions."""
        stats = self._statistics.get(space.id)
        target, widths = self._targets[space.id], self._widths[space.id]
        count, parents = len(outer.merge[0]), len(widths)
        merge: list[dict[tuple[int, int], Tensor]] = [{} for _ in range(parents)]
        unmerge: list[dict[tuple[int, int], Tensor]] = [{} for _ in range(parents)]
        lost, whole = 0.0, 0.0
        for a in range(count):
            members, shares = _members(outer, a)
            total = sum(shares)
            if stats is None:
                weights = tuple(share / total for share in shares)
                found = self._unobserved(space, tuple(widths[p] for p, _ in members), weights)
            else:
                found, energy = self._solve_block(space, stats, members, [share / total for share in shares], a)
                lost, whole = lost + (found.error or 0.0) * energy * total, whole + energy * total
            for (p, b), share, m, u in zip(members, shares, found.merge, found.unmerge, strict=True):
                if share:
                    merge[p][a, b] = m * (total / share)
                unmerge[p][b, a] = u
        error = lost / whole if whole > 0 else (None if stats is None else 0.0)
        sizes = [(m.shape[1], n) for m, n in zip(outer.merge, widths, strict=True)]
        return Grouping(
            space.id,
            tuple(blocks(own, (count, b, target, n)) for own, (b, n) in zip(merge, sizes, strict=True)),
            tuple(blocks(own, (b, count, n, target)) for own, (b, n) in zip(unmerge, sizes, strict=True)),
            error,
        )

    def _solve_block(
        self, space: Space, stats: SpaceStatistics, members: list[tuple[int, int]], weights: list[float], a: int
    ) -> tuple[Grouping, float]:
        part = member_statistics(stats, members, weights)
        options = dict(self._options)
        if isinstance(options.get("reference"), int):  # a parent's number; here every member block is a parent
            chosen = [q for q, (p, _) in enumerate(members) if p == options["reference"] and weights[q] > 0]
            options["reference"] = chosen[0] if chosen else None
        found = self._run(space, part, tuple(weights), options, space.id, a)
        return found, float((part.importance * part.products.energies).sum())

    def _run(
        self, space: Space, stats: SpaceStatistics, weights: tuple[float, ...], options: Mapping[str, Any], *key: int
    ) -> Grouping:
        seed = int(np.random.SeedSequence([self._seed, *key]).generate_state(1)[0])
        generator = torch.Generator().manual_seed(seed)
        try:
            return self._solve(stats, self._targets[space.id], weights=weights, generator=generator, **options)
        except MethodError as error:
            raise MethodError(f"space {space.name!r}: {error}") from error

    def _unobserved(
        self, space: Space, widths: tuple[int, ...] | None = None, weights: tuple[float, ...] | None = None
    ) -> Grouping:
        widths = tuple(self._widths[space.id]) if widths is None else widths
        target = self._targets[space.id]
        if set(widths) != {target}:
            raise MethodError(
                f"space {space.name!r} is observed on no value, so its neurons cannot be matched, and its widths "
                f"differ: parents {list(widths)}, target {target}; give parents and target the same width there"
            )
        return identity(space.id, target, self._weights if weights is None else weights)


def _members(outer: Grouping, a: int) -> tuple[list[tuple[int, int]], list[float]]:
    """The parents' blocks that fused block ``a`` is made of or read as, and their merge entries."""
    members: list[tuple[int, int]] = []
    shares: list[float] = []
    for p, (merge, unmerge) in enumerate(zip(outer.merge, outer.unmerge, strict=True)):
        row: Tensor = merge[a]
        for b in ((row != 0) | (unmerge[:, a] != 0)).nonzero()[:, 0].tolist():
            members.append((p, b))
            shares.append(float(row[b]))
    return members, shares
