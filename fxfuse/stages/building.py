"""Calibrate, group, rewrite: from the matched parents to the network whose weights training then starts from."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from fxfuse.forms import Made
from fxfuse.methods import Given, group_parents, make_merge, method_notes
from fxfuse.passes.calibrate import AT_ONCE, Round, calibrate_in_rounds
from fxfuse.passes.correspond import Correspondence
from fxfuse.passes.label_ensemble import LabelEnsemble, label_ensemble
from fxfuse.passes.merges import Merge
from fxfuse.passes.rewrite import mask_note
from fxfuse.stages.analysis import Matched
from fxfuse.stages.arguments import Data, Job
from fxfuse.types import Grouping, SpaceStatistics


@dataclass(frozen=True, slots=True)
class Observed:
    """What the data say before anything is grouped: the spaces with the neurons' statistics, round by round (none where
    the method looks at no activations), and how one tensor is to be made of several. ``rounds`` is gone through once:
    grouping a round lets go of its Gram matrices, and only then comes the next."""

    rounds: Iterable[Round]
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
    """Read the calibration data, where the method wants statistics of activations, or posteriors: once, unless there
    are more statistics than are kept at a time."""
    host, method, samples = job.host, job.method, data.calibration
    rounds: Iterator[Round] = iter([Round(matched.pairs.reference.axes.spaces, {})])
    if samples is not None and method.preset.observes:
        rounds = calibrate_in_rounds(
            matched.pairs.parents,
            samples,
            weights=job.parents.shares,
            device=host.device,
            importance=method.importance,
            seed=host.seed,
            views=method.preset.views,
            classes=job.parents.union,
            progress=host.progress,
            at_once=None if method.form.widens else AT_ONCE,
        )
    first = next(rounds, Round((), {}))  # a single layer has no neurons to group
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
    return Observed(chain([first], rounds), merge)


def build(job: Job, matched: Matched, data: Data, observed: Observed) -> Built:
    """Group the neurons and put the network together in the method's form.

    Raises ``MethodError`` where a budget is too small, a router cannot be, or widths do not suit the method.
    """
    method, shares, union, device = job.method, job.parents.shares, job.parents.union, job.host.device
    rounds, pairs = observed.rounds, matched.pairs
    widened: tuple[str, ...] = ()
    if method.form.widens:  # which width a space gets depends on all others: there is one round
        (whole,) = rounds = tuple(rounds)
        pairs, widened = method.form.widened(pairs, whole.statistics, shares, union)
    grouped = group_parents(
        pairs,
        rounds,
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
    masks = mask_note(pairs, made.module)
    made.module.to(device)
    notes = (*widened, *method_notes(pairs, method.preset), *made.notes, *([] if masks is None else [masks]))
    return Built(made, pairs, grouped.groupings, grouped.statistics, answer, notes)
