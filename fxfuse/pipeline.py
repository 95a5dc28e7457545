"""From parents and data to one network: the passes in their order.

``trace -> normalize -> axes -> partition -> correspond -> calibrate -> group -> rewrite -> fit -> verify``. Every
stage is a function of its own that may be called by itself; this file only hands their results on.
"""

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from fxfuse.data import check, in_label_space, input_names, samples_from
from fxfuse.device import deterministic, pick_device
from fxfuse.errors import DataError, FuseError, MethodError
from fxfuse.finetuning import Finetuned, fine_tune, plan_of
from fxfuse.forms import Chosen, choose_form
from fxfuse.label_space import LabelSpace, label_space
from fxfuse.methods import Given, check_needs, customised, group_parents, make_merge, method_notes
from fxfuse.passes.augment import choose
from fxfuse.passes.axes import axes
from fxfuse.passes.calibrate import calibrate
from fxfuse.passes.class_spaces import check_classes, check_same_classes, class_spaces, with_classes
from fxfuse.passes.correspond import Correspondence, correspond
from fxfuse.passes.finetune import make_optimizer
from fxfuse.passes.fit import fit_levels
from fxfuse.passes.fit_joint import FUSED, JointReport, fit_joint
from fxfuse.passes.fitting import FitPlan, Store
from fxfuse.passes.importance import ImportanceName, find_importance
from fxfuse.passes.label_ensemble import LabelEnsemble, label_ensemble
from fxfuse.passes.merges import State, reference_states
from fxfuse.passes.partition import partition
from fxfuse.passes.repair import rescale
from fxfuse.passes.resize import scale
from fxfuse.passes.rewrite import fused_state
from fxfuse.passes.teacher import make_teacher
from fxfuse.passes.trace import trace
from fxfuse.passes.verify import compare as compare_networks
from fxfuse.presets import DEFAULT, Preset, find_method
from fxfuse.progress import Progress, QuietProgress
from fxfuse.recipe import FinetuneSettings, FitSettings
from fxfuse.samples import Samples
from fxfuse.types import Analysis, FuseResult, Granularity, Grouping, LevelReport, Score, SpaceStatistics
from fxfuse.weights import check_finite

FIT_KEYS = ("steps", "joint_steps", "lr", "batch_size", "max_seconds", "start", "repair")
JOINT_STEPS_PER_LEVEL = 100
"""Deeper networks have more to make up for, and take smaller steps."""
MANY_STEPS, SMALLER_BATCH = 600, 64
"""Fits of more steps than that take half as many samples in each."""
Head = Literal["probabilities", "logits", "labels"]
Example = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]


def analyse(
    module: nn.Module,
    example: Example,
    *,
    name: str = "parent",
    granularity: Granularity = "block",
    leaves: Sequence[str] = (),
    submodule: str | None = None,
    front_end: Literal["auto", "fx", "export"] = "auto",
    classes: int | None = None,
) -> Analysis:
    """All that the compiler finds out about a model before it sees data: its graph, its neuron spaces, its levels.

    ``example`` is a batch of two or more inputs: a tensor, a tuple of them, or a mapping by forward argument. The
    model is copied and left as it is. With ``classes`` the outputs of that many classes may get others
    (:mod:`fxfuse.label_space`). Raises ``TraceError`` if no graph can be made of it.
    """
    program = trace(module, example, name=name, leaves=leaves, submodule=submodule, front_end=front_end)
    if classes is not None:
        check_classes(program, classes)
    meaning = axes(program, classes=classes)
    return Analysis(program, meaning, partition(program, meaning, granularity))


@dataclass(slots=True)
class _Clock:
    """Seconds per stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - start, 3)


def fuse(
    parents: Sequence[nn.Module],
    *,
    calibration: Any = None,
    method: str = DEFAULT,
    target: nn.Module | float | None = None,
    weights: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    labels: Sequence[Sequence[str | int] | None] | None = None,
    budget: float | str | None = None,
    router: str | None = None,
    importance: str | None = None,
    statistics: str | None = None,
    options: Mapping[str, Any] | None = None,
    base: nn.Module | None = None,
    precisions: Given | None = None,
    granularity: Granularity = "block",
    fit: FitSettings | None = None,
    finetune: FinetuneSettings | int = 0,
    head: Head = "probabilities",
    evaluation: Any = None,
    compare: bool = True,
    example: Example | None = None,
    device: str = "auto",
    seed: int = 0,
    leaves: Sequence[str] = (),
    submodule: str | None = None,
    front_end: Literal["auto", "fx", "export"] = "auto",
    progress: Progress | None = None,
    checkpoint: Store | None = None,
) -> FuseResult:
    """Fuse trained networks of one architecture, up to widths, into one network.

    ``calibration`` is a few hundred inputs or more, labelled or not: tensors, arrays, a torch ``Dataset`` or
    ``DataLoader``, a path or a ``DataSpec``. ``method`` names a preset (:mod:`fxfuse.presets`). ``target`` is the
    architecture that comes out: the first parent's by default, another module of the same graph (its weights do not
    matter), or a factor by which all widths are multiplied. ``weights`` are the parents' shares, equal by default.
    ``labels`` says which class each of a parent's outputs is, one list of names or numbers per parent: the fused head
    then has the union of the classes, and labels of the data are the union's. ``budget`` asks for the network with the
    fewest fused levels that it allows, the others being branches: a factor on one network's parameters, or a text
    (:func:`fxfuse.passes.costs.parse_budget`). ``router`` says how method ``select`` chooses a parent.
    ``statistics`` compares neurons by ``activations`` or ``weights`` instead of as the method does; ``options`` are
    those of its solver and its merge. ``base`` is the model that all parents were trained from, for task arithmetic and
    TIES; ``precisions`` are those of the parents' parameters, one mapping by name per parent, for ``kl``.
    ``finetune`` trains the result end to end afterwards, for so many epochs or as settings say, and the best parent
    beside it as a control (:mod:`fxfuse.finetuning`).
    ``head`` says what the output is fitted to: the mean of the parents' probabilities, of their logits, or labels.
    ``evaluation`` is labelled data for the comparison in the result; nothing is fitted or chosen on it (without it the
    comparison is on the calibration data; ``compare=False`` leaves it out). ``example`` is needed only by a method
    without data. The same seed on the same machine gives the same bits.

    Returns the fused network as ``result.module`` and the account of how it came about. Raises subclasses of
    :class:`fxfuse.errors.FuseError` for anything that cannot work, before any long work where that is possible.
    """
    preset = customised(find_method(method), statistics, options or {})
    check_needs(preset, method, calibration is not None, base is not None, precisions is not None)
    tuning = finetune if isinstance(finetune, FinetuneSettings) else FinetuneSettings(epochs=finetune)
    form = choose_form(preset, method, budget, router)
    importance_name = _importance(importance or preset.importance)
    where = pick_device(device)
    shares = _shares(parents, weights)
    called = _names(parents, names)
    union = None if labels is None else label_space(labels, called, shares)
    counts = [None] * len(parents) if union is None else [len(own) for own in union.maps]
    progress = progress or QuietProgress()
    clock = _Clock()
    notes: list[str] = []
    with clock.stage("read data"):
        classes = () if union is None else union.names
        samples = None if calibration is None else in_label_space(samples_from(calibration), classes)
        judged = None if evaluation is None else in_label_space(samples_from(evaluation), classes)
        _check_data(samples, judged, head)
        _check_tuning(tuning, samples)
        _check_form(form, method, tuning, fit)
    with clock.stage("analyse"):
        shown = _example(example, samples, judged)
        how: dict[str, Any] = {
            "granularity": granularity, "leaves": leaves, "submodule": submodule, "front_end": front_end,
        }  # fmt: skip
        with progress.start(len(parents), "trace and analyse") as bar:
            analyses = []
            for module, name, count in zip(parents, called, counts, strict=True):
                check_finite(module, name)
                analyses.append(analyse(module, shown, name=name, classes=count, **how))
                bar.advance()
        if union is None:
            check_same_classes([analysis.program for analysis in analyses])
        pairs = correspond(_target(target, analyses[0], shown, how, union), analyses)
        form.check(pairs, shares)
        notes.extend(_analysis_notes(pairs.reference))
        ancestor = None if base is None else _base_state(base, pairs.reference, shown, how, counts[0])
    with deterministic():
        with clock.stage("calibrate"):
            seen: dict[int, SpaceStatistics] = {}
            if samples is not None and preset.observes:
                seen = calibrate(
                    pairs.parents, samples, weights=shares, device=where, importance=importance_name, seed=seed,
                    views=preset.views, classes=union, progress=progress,
                )  # fmt: skip
            merge = make_merge(preset, pairs, ancestor, precisions, samples, device=where, seed=seed, progress=progress)
        with clock.stage("group and rewrite"):
            plain = pairs
            pairs, widths = form.widened(pairs, seen, shares, union)
            notes.extend(widths)
            grouped = group_parents(pairs, seen, preset, importance_name, shares, seed, union, merge.precisions)
            groupings, seen = grouped.groupings, grouped.statistics
            notes.extend(method_notes(pairs, preset))
            answer = None
            if union is not None:
                answer = label_ensemble(union, shares, [p.program for p in pairs.parents], samples, device=where)
            made = form.build(pairs, groupings, shares, head, answer, samples, where, merge)
            fused, fitted = made.module.to(where), made.pairs
            notes.extend(made.notes)
        tuned = Finetuned()
        reports: tuple[LevelReport, ...] = ()
        if samples is not None and fitted.reference.partition.levels:
            plan = _plan(preset, fit, shown, len(pairs.reference.partition.levels))
            if made.branched:
                plan = replace(plan, start="fused")
            if plan.transformations:
                notes.append(f"calibration inputs were also used transformed: {', '.join(plan.transformations)}")
            if plan.repair == "rescale":
                with clock.stage("repair"):
                    count = rescale(
                        fused, pairs.parents, pairs.reference.axes, groupings, shares, samples, device=where
                    )
                notes.append(f"layers rescaled to the parents' means and deviations: {count}")
            with clock.stage("fit"):
                reports, joint = _fit(
                    fused,
                    fitted,
                    groupings,
                    seen,
                    shares,
                    head,
                    samples,
                    plan,
                    where,
                    seed,
                    progress,
                    checkpoint,
                    answer,
                )
            if joint is not None:
                notes.append(_joint_note(joint))
            if tuning.epochs:
                with clock.stage("fine-tune"):
                    teacher = make_teacher(fitted, groupings, shares, seen, head, where, answer)
                    tuned = fine_tune(
                        fused, teacher, samples, plan_of(tuning, plan.transformations), device=where, seed=seed,
                        progress=progress, store=checkpoint,
                    )  # fmt: skip
                notes.extend(tuned.notes)
    fused = fused.to("cpu").eval()
    scores: tuple[Score, ...] = ()
    if compare and (judged is not None or samples is not None):
        with clock.stage("verify"):
            data = judged if judged is not None else samples
            assert data is not None
            if judged is None:
                notes.append("no evaluation data was given: the comparison is on the calibration data")
            scores = compare_networks(
                [parent.program for parent in pairs.parents], fused, data, weights=shares, device=where,
                average=_plain_average(plain, shares, union), union=answer, others=tuned.others,
                progress=progress,
            )  # fmt: skip
    return FuseResult(
        module=fused,
        analysis=made.analysis(fused, pairs.reference, granularity),
        parents=pairs.parents,
        groupings=groupings,
        levels=reports,
        scores=scores,
        classes=classes,
        notes=tuple(notes),
        timings=clock.seconds,
        settings={
            "method": method, "statistics": preset.statistics, "options": {**preset.options, **preset.merge_options},
            "importance": importance_name, "head": head, "seed": seed, "device": str(where),
            "weights": list(shares), "parents": list(called), "budget": form.stated, "router": form.router,
            "calibration": None if samples is None else f"{len(samples)} samples: {samples.description}",
        },
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------- checks


def _importance(name: str) -> ImportanceName:
    find_importance(name)
    return name  # type: ignore[return-value]  # checked


def _shares(parents: Sequence[nn.Module], weights: Sequence[float] | None) -> tuple[float, ...]:
    if not parents:
        raise MethodError("fuse needs at least one parent. Got none.")
    given = [1.0] * len(parents) if weights is None else [float(w) for w in weights]
    if len(given) != len(parents):
        raise MethodError(f"weights must have one entry per parent. Got {len(given)} for {len(parents)} parents.")
    if any(not 0 <= w < float("inf") for w in given) or sum(given) <= 0:
        raise MethodError(f"weights must be at least 0 and not all 0. Got {given}.")
    return tuple(w / sum(given) for w in given)


def _names(parents: Sequence[nn.Module], names: Sequence[str] | None) -> tuple[str, ...]:
    if names is None:
        return tuple(f"parent {i}" for i in range(len(parents)))
    if len(names) != len(parents):
        raise MethodError(f"names must have one entry per parent. Got {len(names)} for {len(parents)} parents.")
    return tuple(names)


def _check_data(samples: Samples | None, judged: Samples | None, head: Head) -> None:
    if samples is not None:
        check(samples, at_most=4096)
        if head == "labels" and not samples.labelled:
            raise MethodError("head 'labels' needs labelled calibration data; give labels, or take 'probabilities'")
    if judged is not None:
        check(judged, what="evaluation data", at_most=4096)


def _check_tuning(tuning: FinetuneSettings, samples: Samples | None) -> None:
    if not tuning.epochs:
        return
    make_optimizer(plan_of(tuning, ()), [torch.zeros(1, requires_grad=True)])
    if samples is None:
        raise MethodError("fine-tuning needs calibration data")
    if tuning.towards == "labels" and not samples.labelled:
        raise MethodError("fine-tuning on labels needs labelled calibration data; give labels, or take 'ensemble'")


def _check_form(form: Chosen, method: str, tuning: FinetuneSettings, fit: FitSettings | None) -> None:
    """Whatever changes the network as a whole needs one network, and not branches."""
    asked = {"finetune": tuning.epochs > 0, "repair: rescale": fit is not None and fit.repair == "rescale"}
    branches = form.form != "fused" or (form.budget is not None and form.dial == "levels")
    for what, wanted in asked.items():
        if wanted and branches:
            raise MethodError(
                f"method {method!r} keeps parents as branches, which {what!r} does not train or rescale; "
                "leave it out, or take a method that makes one network"
            )


def _example(example: Example | None, *data: Samples | None) -> Example:
    if example is not None:
        return example
    for samples in data:
        if samples is not None:
            inputs, _ = samples.take(torch.arange(min(3, len(samples))))
            names = input_names(samples)
            if names is not None:
                return dict(zip(names, inputs, strict=True))
            return inputs[0] if len(inputs) == 1 else inputs
    raise DataError("there is nothing to trace the parents with: give calibration data, or example=")


def _target(
    target: nn.Module | float | None,
    first: Analysis,
    example: Example,
    options: Mapping[str, Any],
    union: LabelSpace | None,
) -> Analysis:
    if isinstance(target, nn.Module):
        return analyse(target, example, name="target", classes=None if union is None else union.size, **options)
    fixed = () if union is None else class_spaces(first, len(union.maps[0]))
    made = first if target is None or target == 1.0 else scale(first, float(target), fixed)
    return made if union is None else with_classes(made, union, len(union.maps[0]))


def _analysis_notes(analysis: Analysis) -> Iterator[str]:
    yield from analysis.program.notes
    yield from analysis.partition.notes
    for opaque in analysis.axes.opaque:
        place = f" ({opaque.where})" if opaque.where else ""
        yield f"no axis rule for {opaque.operator} at {opaque.node}{place}: its neurons stay unmatched"


# ----------------------------------------------------------------------------------------------- stages


def _base_state(
    base: nn.Module, reference: Analysis, example: Example, how: Mapping[str, Any], classes: int | None
) -> State:
    """The base model's tensors under the reference's names."""
    check_finite(base, "base")
    found = correspond(reference, [analyse(base, example, name="base", classes=classes, **how)])
    return reference_states(found)[0]


def _plan(preset: Preset, fit: FitSettings | None, example: Example, levels: int) -> FitPlan:
    given = fit or FitSettings()
    inputs = (
        (example,)
        if isinstance(example, Tensor)
        else tuple(example.values() if isinstance(example, Mapping) else example)
    )
    plan = FitPlan(levels=preset.fit, transformations=choose(given.augment, inputs))
    if not preset.joint:
        plan = replace(plan, joint_steps=0)
    elif JOINT_STEPS_PER_LEVEL * levels > plan.joint_steps:
        plan = replace(plan, joint_steps=JOINT_STEPS_PER_LEVEL * levels)
        if plan.joint_steps > MANY_STEPS:
            plan = replace(plan, joint_batch=SMALLER_BATCH)
    if given.batch_size is not None:
        plan = replace(plan, joint_batch=given.batch_size)
    chosen = {k: getattr(given, k) for k in FIT_KEYS}
    chosen = {k: v for k, v in chosen.items() if v is not None and not (k == "joint_steps" and not preset.joint)}
    return replace(plan, **chosen)


def _fit(
    fused: fx.GraphModule,
    pairs: Correspondence,
    groupings: Mapping[int, Grouping],
    statistics: Mapping[int, SpaceStatistics],
    shares: tuple[float, ...],
    head: Head,
    samples: Samples,
    plan: FitPlan,
    device: torch.device,
    seed: int,
    progress: Progress,
    store: Store | None,
    union: LabelEnsemble | None,
) -> tuple[tuple[LevelReport, ...], JointReport | None]:
    teacher = make_teacher(pairs, groupings, shares, statistics, head, device, union)
    reports = fit_levels(fused, teacher, samples, plan, device=device, seed=seed, progress=progress, store=store)
    starts = (
        _starts(pairs, shares, None if union is None else union.labels)
        if plan.joint_steps and plan.start == "auto"
        else {}
    )
    joint = fit_joint(
        fused, teacher, samples, plan, device=device, seed=seed, progress=progress, store=store, starts=starts
    )
    return tuple(reports), joint


def _joint_note(joint: JointReport) -> str:
    began = f"from the weights of {joint.start}, which decided better than the fused ones; "
    others = ", ".join(f"{name} {share:.1%}" for name, share in joint.starts.items())
    return (
        f"all levels together: {'' if joint.start == FUSED else began}held-out error of the answer "
        f"{joint.answer_before:.4g} -> {joint.answer_after:.4g} in {joint.steps} steps "
        f"(other decisions at the start: {others})"
    )


def _starts(pairs: Correspondence, shares: tuple[float, ...], union: LabelSpace | None) -> dict[str, dict[str, Tensor]]:
    """The own weights of the parents that have a share, under the target's names, where widths are the target's."""
    out = {}
    for p, parent in enumerate(pairs.parents):
        state = _plain_state(pairs, tuple(float(q == p) for q in range(len(shares))), union) if shares[p] > 0 else None
        if state is not None:
            out[parent.program.name] = state
    return out


def _plain_state(
    pairs: Correspondence, shares: tuple[float, ...], union: LabelSpace | None
) -> dict[str, Tensor] | None:
    """The mean of the weights as they stand, where the parents' widths allow it."""
    try:
        grouped = group_parents(pairs, {}, find_method("average"), "uniform", shares, 0, union)
        return fused_state(pairs, grouped.groupings, shares)
    except FuseError:
        return None


def _plain_average(pairs: Correspondence, shares: tuple[float, ...], union: LabelSpace | None) -> fx.GraphModule | None:
    state = _plain_state(pairs, shares, union)
    if state is None:
        return None
    module = copy.deepcopy(pairs.reference.program.module)
    module.load_state_dict(state)
    return module.eval()


__all__ = ["analyse", "fuse"]
