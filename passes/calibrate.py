"""Calibrate: one pass over the data gives, per neuron space, all that the grouping solvers know about activations.

Every batch goes through every parent once (and through the importance's own steps). A space is observed through
*views*: the nodes that ``Axes.observed`` names for it, once per occurrence of the space in their value. With ``X_v``
the rows (samples x positions) of view ``v`` by all parents' neurons, side by side, ``R_v`` their number, ``K`` views:

    gram = 1/K  sum_v  c_v  X_v' X_v / R_v           mean = 1/K  sum_v  sqrt(c_v)  X_v' 1 / R_v

so every view has the same say, however many positions it has and however large its values are: ``c_v = e / e_v`` with
``e_v`` the view's mean square and ``e`` the mean of those over the space's views (one view: ``c = 1``, the plain Gram
matrix). The scales ``e_v`` are read off the first :data:`SCALE_SAMPLES` samples (off the first batch, where that is
smaller), which keeps it to one pass and one ``N x N`` matrix per space. Batch products are made in float32 (float64 for
float64 networks) and summed in float64.

Spatial values have far more rows than statistics need: per sample and space at most ``rows_per_sample`` positions are
used, drawn from a jittered grid, the same in every parent. Importance, a few numbers per sample and dearer by far,
counts all positions of at most ``importance_samples`` samples, evenly spread over the data.

Memory: one batch of rows, and half of an ``N x N`` matrix per space. The number of samples does not enter. Where the
spaces of a network would take more than :data:`AT_ONCE` together, there are several rounds, each a pass over the data
for some of the spaces: whoever groups a round's spaces before asking for the next never holds more. The statistics are
the same.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fxfuse.errors import DataError, MethodError, MismatchError
from fxfuse.label_space import LabelSpace
from fxfuse.layouts import neurons
from fxfuse.passes.importance import Attribute, ImportanceName, find_importance, forward_only
from fxfuse.passes.observe import Observer, check_inputs, ignore, to_device
from fxfuse.passes.stretch import at_shape, traced_batch
from fxfuse.passes.sums import Sums, plan_sums
from fxfuse.passes.views import Positions, View, Views, find_space
from fxfuse.progress import Progress, QuietProgress
from fxfuse.samples import Samples
from fxfuse.types import Analysis, Space, SpaceStatistics

ROWS_PER_SAMPLE = 32
"""Positions per sample and space, over all its views."""

SCALE_SAMPLES = 32
"""How many samples tell the scales of a space's views."""

IMPORTANCE_SAMPLES = 128
"""How many samples tell the importance."""

BATCH = 256
"""Samples in a batch, at most."""

ACTIVATIONS = 4 << 30
"""Bytes that all values of a parent may take for one batch: where importance differentiates, they are held at once."""

AT_ONCE = 2 << 30
"""Bytes that the statistics of one round may take, and a batch of the rows that they are made of. A space that needs
more has a round to itself."""


@dataclass(frozen=True, slots=True)
class Round:
    """Spaces that are observed together, every outermost one with all inside it, and the statistics of those among them
    that some value shows."""

    spaces: tuple[Space, ...]
    statistics: dict[int, SpaceStatistics]


def calibrate(
    parents: Sequence[Analysis],
    samples: Samples,
    *,
    weights: tuple[float, ...],
    device: torch.device,
    importance: ImportanceName = "conductance",
    importance_samples: int | None = IMPORTANCE_SAMPLES,
    views: Views = "read",
    batch_size: int | None = None,
    rows_per_sample: int | None = ROWS_PER_SAMPLE,
    seed: int = 0,
    classes: LabelSpace | None = None,
    progress: Progress | None = None,
) -> dict[int, SpaceStatistics]:
    """Statistics of every neuron space that some value shows, by the number of the space: all rounds of
    :func:`calibrate_in_rounds` in one, with its arguments and errors."""
    rounds = calibrate_in_rounds(
        parents, samples, weights=weights, device=device, importance=importance, importance_samples=importance_samples,
        views=views, batch_size=batch_size, rows_per_sample=rows_per_sample, seed=seed, classes=classes,
        progress=progress, at_once=None,
    )  # fmt: skip
    return {number: stats for part in rounds for number, stats in part.statistics.items()}


def calibrate_in_rounds(
    parents: Sequence[Analysis],
    samples: Samples,
    *,
    weights: tuple[float, ...],
    device: torch.device,
    importance: ImportanceName = "conductance",
    importance_samples: int | None = IMPORTANCE_SAMPLES,
    views: Views = "read",
    batch_size: int | None = None,
    rows_per_sample: int | None = ROWS_PER_SAMPLE,
    seed: int = 0,
    classes: LabelSpace | None = None,
    progress: Progress | None = None,
    at_once: int | None = AT_ONCE,
) -> Iterator[Round]:
    """All spaces with their statistics, in rounds that take ``at_once`` bytes each (``None``: a single round). A round
    is made when it is asked for.

    The parents' graphs are the same up to widths: node names and space numbers agree. ``weights`` has one entry per
    parent and scales its importance. ``rows_per_sample`` limits the positions used per sample and space (``None``:
    all), ``importance_samples`` the samples that are differentiated (``None``: all). Unless ``batch_size`` is given, it
    is as large as :data:`ACTIVATIONS` allows, and :data:`BATCH` at most. A space that nobody contracts is seen on the
    last value that shows it; one that no value shows has no statistics. ``views="formed"`` looks at neurons
    before their nonlinearity as well. ``classes`` says which of the data's labels, which are then the union's, are
    which of a parent's classes. Statistics lie on the CPU. The result depends on ``seed`` only through the positions,
    and on the rounds not at all.

    Raises :class:`DataError` for fewer than two samples, inputs that a parent rejects and activations that are not
    finite; :class:`MethodError` for an unknown importance or bad weights; :class:`MismatchError` where a node or a
    space is missing in some parent.
    """
    attribute = find_importance(importance)
    batch_size = _batch_size(parents) if batch_size is None else batch_size
    _check(parents, samples, weights, batch_size, rows_per_sample)
    _check_spaces(parents)
    progress = QuietProgress() if progress is None else progress
    floating = any(x.is_floating_point() for x in parents[0].program.example)
    if importance == "conductance" and not floating:
        progress.note("conductance needs inputs that can be scaled; these are integers: used gradient x activation")
    sums = plan_sums(parents, device, views)
    pass_ = _Pass(parents, sums, attribute, device, rows_per_sample, seed, classes)
    chunks = _chunks(len(samples), batch_size, any(len(total.views) > 1 for total in sums.values()))
    rows = min(batch_size, len(samples)) * (rows_per_sample or ROWS_PER_SAMPLE)
    rounds = list(_rounds(parents[0].axes.spaces, sums, rows, at_once))
    return _observed(rounds, pass_, samples, chunks, importance_samples, (weights, importance), progress)


def _observed(
    rounds: Sequence[tuple[Space, ...]],
    pass_: "_Pass",
    samples: Samples,
    chunks: Sequence[range],
    importance_samples: int | None,
    finish: tuple[tuple[float, ...], ImportanceName],
    progress: Progress,
) -> Iterator[Round]:
    """The rounds one by one. The first differentiates for all: importance is a few numbers per neuron."""
    for i, spaces in enumerate(rounds):
        pass_.begin([space.id for space in spaces], scores=i == 0)
        part = f", part {i + 1} of {len(rounds)}" if len(rounds) > 1 else ""
        with progress.start(len(samples), f"calibrate{part}") as step:
            for chunk in chunks:
                indices = torch.arange(chunk.start, chunk.stop)
                inputs, labels = samples.take(indices)
                scored = _spread(indices, len(samples), importance_samples if i == 0 else 0)
                pass_.batch(inputs, labels, scored)
                step.advance(len(chunk))
        statistics = {total.space.id: total.finish(pass_.parents, len(samples), *finish) for total in pass_.open}
        yield Round(spaces, statistics)


def _rounds(
    spaces: Sequence[Space], sums: Mapping[int, Sums], rows: int, at_once: int | None
) -> Iterator[tuple[Space, ...]]:
    """The spaces, outermost ones with all inside them, in portions of ``at_once`` bytes."""
    portion: list[Space] = []
    taken = 0
    for outermost in (space for space in spaces if space.outer is None):
        tree = [space for space in spaces if outermost.id in (space.id, space.outer)]
        sizes = [sums[space.id].neurons for space in tree if space.id in sums]
        needed = sum(4 * n * n + 4 * n * rows for n in sizes)
        if portion and at_once is not None and taken + needed > at_once:
            yield tuple(portion)
            portion, taken = [], 0
        portion += tree
        taken += needed
    if portion:
        yield tuple(portion)


def _check(
    parents: Sequence[Analysis], samples: Samples, weights: tuple[float, ...], batch_size: int, rows: int | None
) -> None:
    if len(weights) != len(parents) or not all(np.isfinite(w) and w >= 0 for w in weights):
        raise MethodError(f"weights must be one finite, non-negative number per parent ({len(parents)}). Got {weights}")
    if batch_size < 1 or (rows is not None and rows < 1):
        raise MethodError(f"batch_size and rows_per_sample must be at least 1. Got {batch_size} and {rows}")
    if len(samples) < 2:
        raise DataError(
            f"calibration needs at least two samples, a few hundred to be of use. Got {len(samples)} "
            f"from {samples.description}"
        )


def _batch_size(parents: Sequence[Analysis]) -> int:
    """How many samples' values one parent may hold at a time."""
    most = 1
    for parent in parents:
        batch = traced_batch(parent.axes, parent.program.module.graph)
        values = (math.prod(layout.size for layout in axes.dims) for axes in parent.axes.values.values())
        most = max(most, 4 * sum(values) // batch)
    return max(1, min(BATCH, ACTIVATIONS // most))


def _chunks(count: int, size: int, scales_needed: bool) -> list[range]:
    """Indices of the batches, in order; a short first one where scales are to be read off it."""
    chunks = []
    start, stop = 0, min(SCALE_SAMPLES if scales_needed else size, size, count)
    while start < count:
        chunks.append(range(start, stop))
        start, stop = stop, min(stop + size, count)
    return chunks


def _spread(chunk: Tensor, count: int, limit: int | None) -> Tensor | None:
    """Which of the samples of a batch are among ``limit`` evenly spread ones of all; ``None`` for all of them."""
    if limit is None or limit >= count:
        return None
    return ((chunk + 1) * limit // count > chunk * limit // count).nonzero()[:, 0]


def _check_spaces(parents: Sequence[Analysis]) -> None:
    first = parents[0]
    for parent in parents[1:]:
        ours = [(space.id, space.outer) for space in first.axes.spaces]
        theirs = [(space.id, space.outer) for space in parent.axes.spaces]
        if ours != theirs:
            raise MismatchError(
                f"{parent.program.name} has {len(theirs)} neuron spaces that do not match the {len(ours)} of "
                f"{first.program.name}; calibrate parents whose spaces correspond"
            )


# -------------------------------------------------------------------------------------------------- one batch


class _Pass:
    """The state of the pass over the data."""

    def __init__(
        self,
        parents: Sequence[Analysis],
        sums: dict[int, Sums],
        attribute: Attribute,
        device: torch.device,
        rows_per_sample: int | None,
        seed: int,
        classes: LabelSpace | None = None,
    ) -> None:
        self.parents = parents
        self.classes = classes
        self.sums = sums
        self.attribute = attribute
        self.device = device
        self.observers = [Observer(parent.program, (), device, parent.axes) for parent in parents]
        self.rows_per_sample, self.seed = rows_per_sample, seed
        self.open: list[Sums] = []
        self.at_node: dict[str, list[int]] = {}

    def begin(self, spaces: Sequence[int], *, scores: bool) -> None:
        """Begin a round for some of the spaces; with ``scores`` importance is told of every space."""
        self.open = [self.sums[number] for number in spaces if number in self.sums]
        self.at_node = {}
        for total in self.sums.values() if scores else self.open:
            for view in total.views:
                seen = self.at_node.setdefault(view.node, [])
                if view.space not in seen:
                    seen.append(view.space)
        for observer in self.observers:
            observer.watched = frozenset(self.at_node)
        for total in self.open:
            total.begin(self.device)
        counts = {number: len(total.views) for number, total in self.sums.items()}
        self.positions = Positions(self.rows_per_sample, counts, self.seed)

    def batch(self, inputs: tuple[Tensor, ...], labels: Tensor | None, scored: Tensor | None) -> None:
        """Run all parents on one batch and accumulate; ``scored`` picks the samples that tell the importance."""
        inputs = to_device(inputs, self.device)
        labels = None if labels is None else labels.to(self.device)
        size = len(inputs[0])
        self.positions.next_batch(size)
        per_parent = [self._parent(p, inputs, labels, scored) for p in range(len(self.parents))]
        for total in self.open:
            total.add([rows[total.space.id] for rows in per_parent], size)

    def _parent(
        self, p: int, inputs: tuple[Tensor, ...], labels: Tensor | None, scored: Tensor | None
    ) -> dict[int, dict[View, Tensor]]:
        """Rows of every view, after subsampling; importance is accumulated on the way."""
        parent, observer = self.parents[p], self.observers[p]
        if labels is not None and self.classes is not None:
            labels = self.classes.own_labels(p, labels)
        check_inputs(parent.program, inputs)
        batch = traced_batch(parent.axes, parent.program.module.graph)
        found: dict[int, dict[View, Tensor]] = {total.space.id: {} for total in self.open}

        def visit(name: str, value: Tensor) -> None:
            axes = at_shape(parent.axes.values[name], value.shape, batch)
            for number in (number for number in self.at_node[name] if number in found):
                for i, rows in enumerate(neurons(value.detach(), axes, find_space(parent, number))):
                    view = View(number, name, i)
                    found[number][view] = self.positions.select(view, rows, len(inputs[0]))

        if scored is None:
            attributions = self.attribute(observer, inputs, labels, visit)
        else:
            attributions = forward_only(observer, inputs, labels, visit)
            if len(scored):
                picked = tuple(x[scored] for x in inputs)
                attributions = self.attribute(observer, picked, None if labels is None else labels[scored], ignore)
        self._score(p, attributions, batch)
        return found

    def _score(self, p: int, attributions: Mapping[str, Tensor], batch: int) -> None:
        """Add attributions to the scores of the neurons that they belong to."""
        parent = self.parents[p]
        for name, scores in attributions.items():
            axes = at_shape(parent.axes.values[name], scores.shape, batch)
            for number in self.at_node[name]:
                by_view = neurons(scores, axes, find_space(parent, number))
                for v, view in enumerate(self.sums[number].views):
                    if view.node == name:
                        self.sums[number].scores[v][p] += by_view[view.occurrence].sum(0)
