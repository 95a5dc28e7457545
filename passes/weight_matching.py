"""Group from the weights alone: every space by statistics of parameters, other spaces brought into a common frame.

Spaces depend on each other here, because a weight lies in two of them. Two searches, for any solver:

- ``sweep`` (OTFusion): the spaces in the order in which the graph writes them, each by what makes its neurons, in the
  frame of the spaces before it. One pass; what a space's neurons are read by has no say.
- ``back``: in the opposite order, each by all that touches it, in the frame of the spaces behind it (what is before is
  not known yet and compared sorted). Where neurons are dropped, those that nobody reads any more lose importance.
- ``ascent`` (Git Re-Basin): from a sweep, and from random orders, the spaces are grouped again and again in random
  order by all parameters that touch them, until the objective rises no more,

      F = sum_{p < q} w_p w_q sum over parameters <W_p, W_q>,        both in the common frame,

  and the best end of all starts is kept. With more than two parents every step assigns each parent to the mean of the
  others (MergeMany); maps go through the fused order and so agree around every cycle, as in C2M3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from fxfuse.layouts import spaces_in
from fxfuse.passes.correspond import Correspondence
from fxfuse.passes.group import group
from fxfuse.passes.importance import ImportanceName
from fxfuse.passes.posteriors import Precisions, with_divergence
from fxfuse.passes.solvers import SolverName
from fxfuse.passes.solvers.threads import one_thread
from fxfuse.passes.subgraph import parameters_of
from fxfuse.passes.weight_statistics import (
    Foreign,
    Part,
    Scales,
    objective,
    parameter_scales,
    weight_statistics,
)
from fxfuse.types import Grouping, Space, SpaceStatistics

Search = Literal["sweep", "back", "ascent"]

MAX_SWEEPS = 50
"""Rounds over all spaces per start; ten are usual."""

RISE = 1e-7
"""What part of the objective a round must win to be followed by another: float32 sums are no finer."""


@dataclass(frozen=True, slots=True)
class Matched:
    """Groupings of all spaces, the statistics that each was made from without their products, and ``F`` (``None``: no
    search)."""

    groupings: dict[int, Grouping]
    statistics: dict[int, SpaceStatistics]
    objective: float | None = None


@dataclass(slots=True)
class _Task:
    """What all steps of one call share."""

    pairs: Correspondence
    weights: tuple[float, ...]
    solver: SolverName
    options: Mapping[str, Any]
    importance: ImportanceName
    seed: int
    given: Mapping[int, Grouping]
    precisions: Precisions = ()
    trees: tuple[tuple[Space, ...], ...] = field(init=False)
    scales: Scales = field(init=False)

    def __post_init__(self) -> None:
        self.trees = tuple(tree for tree in trees_in_order(self.pairs) if tree[0].id not in self.given)
        self.scales = parameter_scales(self.pairs)

    def statistics(
        self, tree: Sequence[Space], groupings: Mapping[int, Grouping], part: Part, foreign: Foreign
    ) -> dict[int, SpaceStatistics]:
        """Statistics of an outermost space and of what lies inside it, in the frame of ``groupings``."""
        found = {}
        for space in tree:
            stats = weight_statistics(
                self.pairs, space, groupings, self.weights, self.scales,
                part=part, foreign=foreign, importance=self.importance,
            )  # fmt: skip
            if stats is not None and self.precisions:
                stats = with_divergence(
                    stats, self.pairs, space, groupings, self.precisions, part=part, foreign=foreign
                )
            if stats is not None:
                found[space.id] = stats
        return found

    def solve(self, tree: Sequence[Space], statistics: Mapping[int, SpaceStatistics]) -> dict[int, Grouping]:
        widths = {space.id: self.pairs.widths(space.id) for space in tree}
        targets = {space.id: space.size for space in tree}
        return group(tree, statistics, widths, targets, self.solver, self.options, self.weights, self.seed)

    def objective(self, groupings: Mapping[int, Grouping]) -> float:
        return objective(self.pairs, groupings, self.weights, self.scales)

    def sweep(self, trees: Sequence[tuple[Space, ...]], parts: tuple[Part, ...]) -> Matched:
        """Every space once, in order; those of which nothing can be told yet wait for others."""
        groupings = dict(self.given)
        statistics: dict[int, SpaceStatistics] = {}
        waiting = list(trees)
        while waiting:
            tree, found = self._next(waiting, groupings, parts)
            waiting.remove(tree)
            groupings.update(self.solve(tree, found))
            statistics.update({number: stats.light() for number, stats in found.items()})
        return Matched(groupings, statistics)

    def back(self) -> Matched:
        """Every space once, the last one first."""
        groupings = dict(self.given)
        statistics: dict[int, SpaceStatistics] = {}
        for tree in reversed(self.trees):
            found = self.statistics(tree, groupings, "all", "sort")
            groupings.update(self.solve(tree, found))
            statistics.update({number: stats.light() for number, stats in found.items()})
        return Matched(groupings, statistics)

    def _next(
        self, waiting: Sequence[tuple[Space, ...]], groupings: Mapping[int, Grouping], parts: tuple[Part, ...]
    ) -> tuple[tuple[Space, ...], dict[int, SpaceStatistics]]:
        """The first space that something is known of, without sorting what is foreign if possible."""
        attempts: list[tuple[Part, Foreign]] = [(part, "skip") for part in parts]
        for part, foreign in (*attempts, ("all", "sort")):
            for tree in waiting:
                found = self.statistics(tree, groupings, part, foreign)
                needed = tree[1:] or tree  # blocks are told by their insides
                if found if foreign == "sort" else all(space.id in found for space in needed):
                    return tree, found
        return waiting[0], {}

    def ascend(self, start: Matched, generator: torch.Generator) -> Matched:
        """Coordinate ascent from a start to a fixed point."""
        best = Matched(start.groupings, start.statistics, self.objective(start.groupings))
        for _ in range(MAX_SWEEPS):
            groupings, statistics = dict(best.groupings), dict(best.statistics)
            for turn in torch.randperm(len(self.trees), generator=generator).tolist():
                tree = self.trees[turn]
                found = self.statistics(tree, groupings, "all", "skip") or self.statistics(
                    tree, groupings, "all", "sort"
                )
                groupings.update(self.solve(tree, found))
                statistics.update({number: stats.light() for number, stats in found.items()})
            value = self.objective(groupings)
            assert best.objective is not None
            if not value > best.objective + RISE * abs(best.objective):
                break
            best = Matched(groupings, statistics, value)
        return best


@one_thread()
def match_weights(
    pairs: Correspondence,
    weights: tuple[float, ...],
    solver: SolverName,
    options: Mapping[str, Any],
    *,
    search: Search = "sweep",
    restarts: int = 2,
    importance: ImportanceName = "uniform",
    seed: int = 0,
    given: Mapping[int, Grouping] | None = None,
    precisions: Precisions = (),
) -> Matched:
    """Groupings of every space from the parents' parameters. ``restarts`` counts the random orders that ``ascent``
    tries besides the graph's; the groupings in ``given`` stay; ``precisions`` make neurons posteriors.

    Raises :class:`MethodError` as :func:`fxfuse.passes.group.group` does, and for an importance that needs data.
    """
    task = _Task(pairs, weights, solver, options, importance, seed, given or {}, precisions)
    if search == "back":
        return task.back()
    start = task.sweep(task.trees, ("written", "all"))
    if search == "sweep" or not task.trees:
        return start
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, 77]).generate_state(1)[0]))
    ends = [task.ascend(start, generator)]
    for _ in range(restarts):
        order = torch.randperm(len(task.trees), generator=generator).tolist()
        ends.append(task.ascend(task.sweep([task.trees[turn] for turn in order], ("all",)), generator))
    return max(ends, key=lambda end: end.objective or 0.0)


def trees_in_order(pairs: Correspondence) -> tuple[tuple[Space, ...], ...]:
    """The outermost spaces, each followed by what lies inside it, in the order in which the graph first writes them."""
    reference = pairs.reference
    place: dict[int, int] = {}
    for turn, node in enumerate(reference.program.module.graph.nodes):
        for name in parameters_of(reference.program.module, node):
            axes = reference.axes.state.get(name)
            for dim, layout in enumerate(() if axes is None else axes.dims):
                for number in spaces_in(layout):
                    if axes is not None and (dim, number) not in axes.reads:
                        place.setdefault(number, turn)
    found = []
    for space in reference.axes.spaces:
        if space.outer is None:
            tree = (space, *(inner for inner in reference.axes.spaces if inner.outer == space.id))
            found.append((min(place.get(s.id, len(reference.program.module.graph.nodes)) for s in tree), tree))
    found.sort(key=lambda pair: pair[0])
    return tuple(tree for _, tree in found)
