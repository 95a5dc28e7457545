"""Sums: what is accumulated for one neuron space over the batches, and the averages that it ends as."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fxfuse.passes.importance import ImportanceName, normalise, weight_scores
from fxfuse.passes.views import View, Views, aligned, find_space, find_views
from fxfuse.products import Half, Products
from fxfuse.types import Analysis, Space, SpaceStatistics


@dataclass(slots=True)
class Sums:
    """What has been accumulated for one space; matrices only from :meth:`begin` to :meth:`finish`."""

    space: Space
    views: tuple[View, ...]
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    scores: list[list[Tensor]]  # per view and parent
    gram: Half | None = None
    mean: Tensor | None = None
    scales: list[float] = field(default_factory=list)
    rows: int = 0

    @property
    def neurons(self) -> int:
        """``N``: all parents' neurons, in all blocks."""
        return sum(n * b for n, b in zip(self.widths, self.blocks, strict=True))

    def begin(self, device: torch.device) -> None:
        """Make room for the matrices."""
        self.gram = Half(self.neurons, device)
        self.mean = torch.zeros(self.neurons, dtype=torch.float64, device=device)

    def add(self, parents: Sequence[dict[View, Tensor]], size: int) -> None:
        """Add one batch of ``size`` samples, given as every parent's rows of every view."""
        assert self.gram is not None
        assert self.mean is not None
        joined = [torch.cat(aligned([found[view] for found in parents], size), 1) for view in self.views]
        if not self.scales:
            self.scales = _scales(joined)
        kind = torch.promote_types(joined[0].dtype, torch.float32)
        counts = [len(rows) / size for rows in joined]
        factors = [(c / n) ** 0.5 for c, n in zip(self.scales, counts, strict=True)]
        stacked = [x.to(kind) if f == 1.0 else x.to(kind) * f for x, f in zip(joined, factors, strict=True)]
        x = stacked[0] if len(stacked) == 1 else torch.cat(stacked)
        self.gram.add(x)
        for rows, n in zip(stacked, counts, strict=True):  # sums, not products with ones: those lose digits
            self.mean += rows.sum(0) * n**-0.5
        self.rows += len(x)

    def finish(
        self, parents: Sequence[Analysis], count: int, weights: Sequence[float], importance: ImportanceName
    ) -> SpaceStatistics:
        """The sums over ``count`` samples as averages; the sums themselves are gone afterwards."""
        shares = []
        for p, weight in enumerate(weights):
            if importance in ("magnitude", "norm-product"):
                scores = weight_scores(parents[p], find_space(parents[p], self.space.id), importance)
            else:  # every view has the same say, whatever the size of its attributions
                views = [normalise(view[p], 1.0) for view in self.scores]
                scores = torch.stack(views).mean(0).cpu()
            shares.append(normalise(scores.cpu(), weight))
        assert self.gram is not None
        assert self.mean is not None
        gram, mean = self.gram.average(count * len(self.views)), self.mean.cpu()
        self.gram = self.mean = None
        return SpaceStatistics(
            space=self.space.id,
            widths=self.widths,
            outer_widths=self.blocks,
            rows=self.rows,
            mean=mean / (count * len(self.views)),
            products=Products(gram),
            importance=torch.cat(shares),
        )


def plan_sums(parents: Sequence[Analysis], device: torch.device, shown: Views) -> dict[int, Sums]:
    """What to accumulate for which space: all that some value shows."""
    sums: dict[int, Sums] = {}
    for space in parents[0].axes.spaces:
        views = find_views(parents, space, shown)
        if not views:
            continue
        outer = space.outer
        widths = tuple(find_space(parent, space.id).size for parent in parents)
        blocks = tuple(1 if outer is None else find_space(parent, outer).size for parent in parents)
        scores = [
            [torch.zeros(n * b, dtype=torch.float64, device=device) for n, b in zip(widths, blocks, strict=True)]
            for _ in views
        ]
        sums[space.id] = Sums(space=space, views=views, widths=widths, blocks=blocks, scores=scores)
    return sums


def _scales(views: list[Tensor]) -> list[float]:
    """``c_v`` of every view, from the rows of some samples."""
    if len(views) == 1:
        return [1.0]
    energies = torch.stack([rows.double().square().mean() for rows in views])
    scales = torch.where(energies > 0, energies.mean() / energies, torch.ones_like(energies))
    return [float(c) for c in scales]
