"""Where and how a neuron space is looked at: its views, and the positions of them that are used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fxfuse.errors import MismatchError
from fxfuse.layouts import neurons
from fxfuse.types import Analysis, Layout, Leaf, Space


@dataclass(frozen=True, slots=True)
class View:
    """One occurrence of a space in the value of one node."""

    space: int
    node: str
    occurrence: int


Views = Literal["read", "formed"]
"""Which values show a space: those on which it is contracted, or also those that a pointwise operator makes them of."""


def find_views(parents: Sequence[Analysis], space: Space, views: Views = "read") -> tuple[View, ...]:
    """The views of a space that every parent has: of the observed nodes (and those right before them, for ``formed``),
    or else of the last node that has any."""
    first = parents[0].axes
    names = first.observed.get(space.id, ())
    for name in names:
        if any(name not in parent.axes.values for parent in parents):
            raise MismatchError(f"not every parent has a value named {name}; the parents' graphs must correspond")
    if views == "formed":
        names = tuple(dict.fromkeys(before for name in names for before in (*_formed(parents, name), name)))
    observed = [view for name in names for view in _views_at(parents, space, name)]
    if observed:
        return tuple(observed)
    for name in reversed(list(first.values)):
        fallback = _views_at(parents, space, name)
        if fallback:
            return tuple(fallback)
    return ()


def _formed(parents: Sequence[Analysis], name: str) -> list[str]:
    """The value that ``name`` is a function of, if it is of that one alone and every dimension means the same."""
    node = next((node for node in parents[0].program.module.graph.nodes if node.name == name), None)
    sources = [] if node is None else [source.name for source in node.all_input_nodes]
    if len(sources) != 1 or any(sources[0] not in parent.axes.values for parent in parents):
        return []
    alike = all(parent.axes.values[sources[0]].dims == parent.axes.values[name].dims for parent in parents)
    return sources if alike else []


def _views_at(parents: Sequence[Analysis], space: Space, node: str) -> list[View]:
    counts = []
    for parent in parents:
        axes = parent.axes.values.get(node)
        if axes is None or not any(_mentions(layout, space.id) for layout in axes.dims):
            return []
        shape = [layout.size for layout in axes.dims]
        counts.append(len(neurons(torch.empty(shape, device="meta"), axes, find_space(parent, space.id))))
    return [View(space.id, node, i) for i in range(min(counts))]


def _mentions(layout: Layout, space: int) -> bool:
    if isinstance(layout, Leaf):
        return layout.space == space
    return any(_mentions(part, space) for part in layout.parts)


def find_space(parent: Analysis, number: int) -> Space:
    """A parent's space by its number; raises :class:`MismatchError` if it has none."""
    for space in parent.axes.spaces:
        if space.id == number:
            return space
    raise MismatchError(f"{parent.program.name} has no neuron space {number}; the parents' graphs must correspond")


class Positions:
    """Which rows of a value to use: per sample a jittered grid, the same for every parent.

    The grid of a sample depends on the seed, the view and the number of the sample, not on how samples are batched.
    """

    def __init__(self, rows_per_sample: int | None, views: Mapping[int, int], seed: int) -> None:
        self.limits = {s: None if rows_per_sample is None else max(1, rows_per_sample // k) for s, k in views.items()}
        self.seed = seed
        self.size = 0
        self.generators: dict[View, torch.Generator] = {}
        self.jitter: dict[View, Tensor] = {}

    def next_batch(self, size: int) -> None:
        """Forget the grids of the last batch."""
        self.size = size
        self.jitter.clear()

    def select(self, view: View, rows: Tensor, size: int) -> Tensor:
        """At most the limit of rows per sample; all rows where there are no more."""
        limit = self.limits[view.space]
        if len(rows) % size or limit is None or len(rows) // size <= limit:
            return rows
        own = len(rows) // size
        if view not in self.jitter:
            self.jitter[view] = torch.rand(size, limit, generator=self._generator(view), dtype=torch.float64)
        grid = (torch.arange(limit) + self.jitter[view]) * (own / limit)
        index = torch.arange(size)[:, None] * own + grid.long().clamp(max=own - 1)
        return rows[index.flatten().to(rows.device)]

    def _generator(self, view: View) -> torch.Generator:
        if view not in self.generators:
            key = [self.seed, view.space, view.occurrence, *view.node.encode()]
            number = int(np.random.SeedSequence(key).generate_state(1)[0])
            self.generators[view] = torch.Generator().manual_seed(number)
        return self.generators[view]


def aligned(parents: list[Tensor], size: int) -> list[Tensor]:
    """The same number of rows from every parent.

    Numbers differ only where rows run over another space, whose entries come sorted: then equal quantiles are taken.
    """
    counts = {len(rows) for rows in parents}
    if len(counts) == 1:
        return parents
    least = min(counts) // size
    out = []
    for rows in parents:
        own = len(rows) // size
        position = ((torch.arange(least, device=rows.device) + 0.5) * (own / least)).long()
        start = torch.arange(size, device=rows.device)[:, None] * own
        out.append(rows[(start + position).flatten()])
    return out
