"""A method at work: its options checked, its needs met, its grouping made from activations or from weights."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor

from fxfuse.errors import MethodError, nearest
from fxfuse.label_space import LabelSpace
from fxfuse.matrices import compact
from fxfuse.passes.ancestry import kinship_note
from fxfuse.passes.calibrate import Round
from fxfuse.passes.class_spaces import class_spaces
from fxfuse.passes.correspond import Correspondence
from fxfuse.passes.group import group_trees
from fxfuse.passes.importance import WITHOUT_DATA, ImportanceName
from fxfuse.passes.merges import MERGE_OPTIONS, Merge, State, merge_options
from fxfuse.passes.posteriors import Precisions, check_precisions, fisher_precisions
from fxfuse.passes.reads import regressed
from fxfuse.passes.solvers import check_options, solver_options
from fxfuse.passes.weight_matching import match_weights
from fxfuse.presets import Preset, Statistics
from fxfuse.progress import Progress
from fxfuse.samples import Samples
from fxfuse.types import Grouping, Space, SpaceStatistics

Given = Sequence[Mapping[str, Tensor]]
"""Precisions as the user gives them: one mapping per parent, by that parent's own parameter names."""


def customised(preset: Preset, statistics: str | None, options: Mapping[str, Any]) -> Preset:
    """The preset with the user's choice of statistics, and options of its solver and of its merge.

    Raises :class:`MethodError` for an unknown option or statistics, and for activations where the method is defined on
    weights alone.
    """
    if statistics is not None:
        if statistics not in get_args(Statistics):
            raise MethodError(f"statistics must be 'activations' or 'weights'. Got {statistics!r}")
        if preset.solver == "average" or (preset.solver == "kl" and statistics == "activations"):
            raise MethodError(f"this method does not compare neurons by {statistics}: leave `statistics` out")
        search = ("ascent" if preset.solver == "rebasin" else "sweep") if preset.statistics != statistics else None
        preset = replace(preset, statistics=statistics, search=search or preset.search)  # type: ignore[arg-type]  # checked
        if statistics == "weights" and preset.importance not in WITHOUT_DATA:
            preset = replace(preset, importance="magnitude")
    known = options_of(preset)
    for key in options:
        if key not in known:
            raise MethodError(
                f"unknown option {key!r}: {nearest(key, known) if known else 'this method has none, so leave it out'}"
            )
    own = {key: value for key, value in options.items() if key in MERGE_OPTIONS[preset.merge]}
    merge_options(preset.merge, own)
    rest = {key: value for key, value in options.items() if key not in own}
    check_options(preset.solver, rest)
    return replace(preset, options={**preset.options, **rest}, merge_options={**preset.merge_options, **own})


def options_of(preset: Preset) -> dict[str, Any]:
    """The options that a method takes, of its solver and of its merge."""
    return {**solver_options(preset.solver), **MERGE_OPTIONS[preset.merge]}


def check_needs(preset: Preset, method: str, samples: bool, base: bool, precisions: bool) -> None:
    """Raise :class:`MethodError` where a method lacks what it works on, or is given what it does not use."""
    if preset.needs_data and not samples:
        raise MethodError(
            f"method {method!r} looks at activations: give it calibration data, or take a method that needs none "
            "('rebasin-weights', 'ot-weights', 'transplant', 'average')"
        )
    if preset.needs_base and not base:
        raise MethodError(
            f"method {method!r} adds up what training has changed in a base model: give that model (base= in Python, "
            "`base` in a recipe, --base)"
        )
    if base and not preset.needs_base:
        raise MethodError(f"method {method!r} uses no base model; take 'task-arithmetic' or 'ties', or leave it out")
    if preset.merge == "precision" and not (samples or precisions):
        raise MethodError(
            f"method {method!r} merges posteriors: give the precisions of the parents' parameters (precisions= in "
            "Python), or calibration data to estimate them from"
        )
    if precisions and preset.merge != "precision":
        raise MethodError(f"method {method!r} uses no precisions; take 'kl', or leave them out")


@dataclass(slots=True)
class Grouped:
    """The groupings, and the statistics that they were made from, without their Gram matrices."""

    groupings: dict[int, Grouping]
    statistics: dict[int, SpaceStatistics]


def group_parents(
    pairs: Correspondence,
    rounds: Iterable[Round],
    preset: Preset,
    importance: ImportanceName,
    shares: tuple[float, ...],
    seed: int,
    union: LabelSpace | None = None,
    precisions: Precisions = (),
) -> Grouped:
    """Group the neurons as the preset says. ``rounds`` holds every space once, with the statistics of its activations
    where there are any; classes are grouped as ``union`` says.

    Gram matrices are what a fusion of wide networks needs most memory for. They are let go of one by one, in the
    rounds' own mappings, as soon as their space is grouped. Merge matrices are kept in the parents' own precision, and
    without their zeros where they are large and nearly empty.
    """
    classes = () if union is None else class_spaces(pairs.reference, union.size)
    given = {space: union.grouping(space, shares) for space in classes} if union is not None else {}
    kind = _precision(pairs)
    out = Grouped(dict(given), {})
    if preset.statistics == "weights":
        matched = match_weights(
            pairs, shares, preset.solver, preset.options, search=preset.search, importance=importance, seed=seed,
            given=given, precisions=precisions,
        )  # fmt: skip
        out.statistics |= matched.statistics
    hidden: list[Space] = []
    for part in rounds:
        inside = {space.id for space in part.spaces} - set(given)
        spaces = tuple(space for space in pairs.reference.axes.spaces if space.id in inside)  # as wide as is wanted now
        if preset.statistics == "activations":
            spaces, unseen = _seen(spaces, part.statistics)
            hidden += unseen
        trees: Iterable[dict[int, Grouping]]
        if preset.statistics == "weights":
            trees = ({space.id: matched.groupings.pop(space.id)} for space in spaces)
        else:
            widths = {space.id: pairs.widths(space.id) for space in spaces}
            targets = {space.id: space.size for space in spaces}
            trees = group_trees(spaces, part.statistics, widths, targets, preset.solver, preset.options, shares, seed)
        for tree in trees:
            found = regressed(spaces, tree, part.statistics) if preset.reads == "regression" else tree
            out.groupings |= {number: _kept(grouping, kind) for number, grouping in found.items()}
            for number in tree:
                known = part.statistics.pop(number, None)
                if known is not None:
                    out.statistics.setdefault(number, known.light())
    if hidden:
        told = _unseen(pairs, tuple(hidden), preset, importance, shares, seed, out)
        out.groupings |= {number: _kept(grouping, kind) for number, grouping in told.items()}
    return out


def _seen(
    spaces: Sequence[Space], statistics: Mapping[int, SpaceStatistics]
) -> tuple[tuple[Space, ...], tuple[Space, ...]]:
    """The spaces of which something was observed, an outermost one with all inside it, and the others."""
    shown = {space.id if space.outer is None else space.outer for space in spaces if space.id in statistics}
    there = [(space.outer if space.outer is not None else space.id) in shown for space in spaces]
    seen = tuple(space for space, is_there in zip(spaces, there, strict=True) if is_there)
    return seen, tuple(space for space, is_there in zip(spaces, there, strict=True) if not is_there)


def _unseen(
    pairs: Correspondence,
    hidden: tuple[Space, ...],
    preset: Preset,
    importance: ImportanceName,
    shares: tuple[float, ...],
    seed: int,
    made: Grouped,
) -> Mapping[int, Grouping]:
    """Groupings of spaces that no value shows (the cells of a projected LSTM): by the parameters that touch them, in
    the frame of the spaces that were seen. Where nothing was seen at all, every space keeps its order."""
    if not made.statistics:
        widths = {space.id: pairs.widths(space.id) for space in hidden}
        targets = {space.id: space.size for space in hidden}
        trees = group_trees(hidden, {}, widths, targets, preset.solver, preset.options, shares, seed)
        return {number: grouping for tree in trees for number, grouping in tree.items()}
    told = importance if importance in WITHOUT_DATA else "magnitude"
    return match_weights(
        pairs, shares, preset.solver, preset.options, importance=told, seed=seed, given=made.groupings
    ).groupings


def _precision(pairs: Correspondence) -> torch.dtype:
    """Double where some parent computes in it, else single."""
    tensors = [t for parent in pairs.parents for t in parent.program.module.state_dict().values()]
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _kept(grouping: Grouping, kind: torch.dtype) -> Grouping:
    """The grouping as it is kept."""
    merge, unmerge = (tuple(compact(matrix.to(kind)) for matrix in side) for side in (grouping.merge, grouping.unmerge))
    return replace(grouping, merge=merge, unmerge=unmerge)


def method_notes(pairs: Correspondence, preset: Preset) -> Iterator[str]:
    """What there is to say of a method and these parents: whether they share an ancestor, where that matters."""
    if preset.solver == "average" and preset.form == "fused":
        note = kinship_note(pairs)
        if note is not None:
            yield note


def make_merge(
    preset: Preset,
    pairs: Correspondence,
    base: State | None,
    precisions: Given | None,
    samples: Samples | None,
    *,
    device: torch.device,
    seed: int,
    progress: Progress,
) -> Merge:
    """The preset's way of merging, with the base model or the precisions that it needs; these are estimated from
    ``samples`` where they are not given."""
    found: Precisions = ()
    if preset.merge == "precision":
        if precisions is not None:
            found = check_precisions(pairs, precisions)
        elif samples is not None:
            found = fisher_precisions(pairs, samples, device=device, seed=seed, progress=progress)
    return Merge(preset.merge, preset.merge_options, base, found)
