"""Calibrate, group, rewrite: from the matched parents to the network whose weights training then starts from."""

from collections.abc import Mapping
from dataclasses import dataclass

from fxfuse.forms import Made
from fxfuse.methods import Given, group_parents, make_merge, method_notes
from fxfuse.passes.calibrate import calibrate
from fxfuse.passes.correspond import Correspondence
from fxfuse.passes.label_ensemble import LabelEnsemble, label_ensemble
from fxfuse.passes.merges import Merge
from fxfuse.stages.analysis import Matched
from fxfuse.stages.arguments import Data, Job
from fxfuse.types import Grouping, SpaceStatistics


@dataclass(frozen=True, slots=True)
class Observed:
    """What the data say before anything is grouped: the neurons' statistics by space, none where the method looks at no
    activations, and how one tensor is to be made of several. Grouping lets go of the statistics' Gram matrices."""

    statistics: dict[int, SpaceStatistics]
    merge: Merge


@dataclass(frozen=True, slots=True)
class Built:
    """The network before it is trained (``made``), and how its neurons came about: the ``groupings`` by space and the
    ``statistics`` that they were made from. ``pairs`` are the parents with the target's final widths; ``answer`` is how
    parents of different classes are combined."""

    made: Made
    pairs: Correspondence
    groupings: Mapping[int, Grouping]
    statistics: Mapping[int, SpaceStatistics]
    answer: LabelEnsemble | None
    notes: tuple[str, ...]


def observe(job: Job, matched: Matched, data: Data, precisions: Given | None) -> Observed:
    """Read the calibration data once, where the method wants statistics of activations, or posteriors."""
    host, method, samples = job.host, job.method, data.calibration
    statistics: dict[int, SpaceStatistics] = {}
    if samples is not None and method.preset.observes:
        statistics = calibrate(
            matched.pairs.parents,
            samples,
            weights=job.parents.shares,
            device=host.device,
            importance=method.importance,
            seed=host.seed,
            views=method.preset.views,
            classes=job.parents.union,
            progress=host.progress,
        )
    merge = make_merge(
        method.preset,
        matched.pairs,
        matched.base,
        precisions,
        samples,
        device=host.device,
        seed=host.seed,
        progress=host.progress,
    )
    return Observed(statistics, merge)


def build(job: Job, matched: Matched, data: Data, observed: Observed) -> Built:
    """Group the neurons and put the network together in the method's form.

    Raises ``MethodError`` where a budget is too small, a router cannot be, or widths do not suit the method.
    """
    method, shares, union, device = job.method, job.parents.shares, job.parents.union, job.host.device
    pairs, widened = method.form.widened(matched.pairs, observed.statistics, shares, union)
    grouped = group_parents(
        pairs,
        observed.statistics,
        method.preset,
        method.importance,
        shares,
        job.host.seed,
        union,
        observed.merge.precisions,
    )
    answer = None
    if union is not None:
        programs = [parent.program for parent in pairs.parents]
        answer = label_ensemble(union, shares, programs, data.calibration, device=device)
    made = method.form.build(
        pairs, grouped.groupings, shares, job.training.head, answer, data.calibration, device, observed.merge
    )
    made.module.to(device)
    notes = (*widened, *method_notes(pairs, method.preset), *made.notes)
    return Built(made, pairs, grouped.groupings, grouped.statistics, answer, notes)
