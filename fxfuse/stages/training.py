"""Repair, fit, fine-tune: the built network is trained in place towards what its parents answer."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from fxfuse.finetuning import fine_tune, plan_of
from fxfuse.passes.augment import choose
from fxfuse.passes.fit import fit_levels
from fxfuse.passes.fit_joint import FUSED, JointReport, fit_joint
from fxfuse.passes.fitting import FitPlan
from fxfuse.passes.repair import rescale
from fxfuse.passes.teacher import Teacher, make_teacher
from fxfuse.presets import Preset
from fxfuse.recipe import FitSettings
from fxfuse.samples import Samples
from fxfuse.stages.analysis import Example, Matched
from fxfuse.stages.arguments import Data, Job
from fxfuse.stages.building import Built
from fxfuse.stages.clock import Clock
from fxfuse.stages.plain import own_states
from fxfuse.types import LevelReport

FIT_KEYS = ("steps", "joint_steps", "lr", "batch_size", "max_seconds", "start", "repair")
JOINT_STEPS_PER_LEVEL = 100
"""Deeper networks have more to make up for, and take smaller steps."""
MANY_STEPS, MANY_PARENTS, SMALLER_BATCH = 600, 4, 64
"""Fits of more steps than that, or of as many parents, who all have to answer, take half as many samples in each."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of each level, and further networks for the comparison, by the names of their rows."""

    levels: tuple[LevelReport, ...] = ()
    others: Mapping[str, nn.Module] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def train(job: Job, matched: Matched, data: Data, built: Built, clock: Clock) -> Trained:
    """Train ``built.made.module`` in place, where there are data and levels to fit.

    Raises ``MethodError`` for transformations that the inputs do not allow.
    """
    samples, fitted = data.calibration, built.made.pairs
    if samples is None or not fitted.reference.partition.levels:
        return Trained()
    host, training, shares = job.host, job.training, job.parents.shares
    levels = len(matched.pairs.reference.partition.levels)
    plan = make_plan(job.method.preset, training.fit, matched.example, levels, len(matched.pairs.parents))
    if built.made.branched:
        plan = replace(plan, start="fused")
    notes = []
    if plan.levels == "none" and not plan.joint_steps and training.head == "labels":
        notes.append(f"head: labels has no effect, for method {job.method.name!r} fits nothing")
    if plan.transformations:
        notes.append(f"calibration inputs were also used transformed: {', '.join(plan.transformations)}")
    if plan.repair == "rescale":
        with clock.stage("repair"):
            notes.append(_rescale(job, built, samples))
    teacher = make_teacher(fitted, built.groupings, shares, built.statistics, training.head, host.device, built.answer)
    with clock.stage("fit"):
        reports, joint = _fit(job, built, teacher, samples, plan)
    if joint is not None:
        notes.append(joint_note(joint))
    if not training.finetune.epochs:
        return Trained(reports, {}, tuple(notes))
    with clock.stage("fine-tune"):
        tuned = fine_tune(
            built.made.module,
            teacher,
            samples,
            plan_of(training.finetune, plan.transformations),
            device=host.device,
            seed=host.seed,
            progress=host.progress,
            store=host.store,
        )
    return Trained(reports, tuned.others, (*notes, *tuned.notes))


def make_plan(preset: Preset, given: FitSettings, example: Example, levels: int, parents: int) -> FitPlan:
    """The plan of the fit: the method's own, more joint steps for deeper networks, smaller ones for these and for many
    parents, and what is ``given`` above all."""
    named = tuple(example.values()) if isinstance(example, Mapping) else example
    inputs = (named,) if isinstance(named, Tensor) else named
    plan = FitPlan(levels=preset.fit, transformations=choose(given.augment, inputs))
    if not preset.joint:
        plan = replace(plan, joint_steps=0)
    elif JOINT_STEPS_PER_LEVEL * levels > plan.joint_steps:
        plan = replace(plan, joint_steps=JOINT_STEPS_PER_LEVEL * levels)
    if plan.joint_steps > MANY_STEPS or parents >= MANY_PARENTS:
        plan = replace(plan, joint_batch=SMALLER_BATCH)
    if given.batch_size is not None:
        plan = replace(plan, joint_batch=given.batch_size)
    keys = [key for key in FIT_KEYS if preset.joint or key != "joint_steps"]
    chosen = {key: getattr(given, key) for key in keys}
    return replace(plan, **{key: value for key, value in chosen.items() if value is not None})


def _rescale(job: Job, built: Built, samples: Samples) -> str:
    count = rescale(
        built.made.module,
        built.pairs.parents,
        built.pairs.reference.axes,
        built.groupings,
        job.parents.shares,
        samples,
        device=job.host.device,
    )
    return f"layers rescaled to the parents' means and deviations: {count}"


def _fit(
    job: Job, built: Built, teacher: Teacher, samples: Samples, plan: FitPlan
) -> tuple[tuple[LevelReport, ...], JointReport | None]:
    """Level by level, then all together."""
    fused, fitted, host = built.made.module, built.made.pairs, job.host
    reports = fit_levels(
        fused, teacher, samples, plan, device=host.device, seed=host.seed, progress=host.progress, store=host.store
    )
    starts = {}
    if plan.joint_steps and plan.start == "auto":
        starts = own_states(fitted, job.parents.shares, job.parents.union)
    joint = fit_joint(
        fused,
        teacher,
        samples,
        plan,
        device=host.device,
        seed=host.seed,
        progress=host.progress,
        store=host.store,
        starts=starts,
    )
    return tuple(reports), joint


def joint_note(joint: JointReport) -> str:
    """What the fit of all levels together did, in a sentence."""
    if not math.isfinite(joint.answer_before):
        return (
            "all levels together: not fitted, for the error of the answer on held-out samples is no number; look for "
            "infinite or undefined outputs of the parents"
        )
    began = f"from the weights of {joint.start}, which decided better than the fused ones; "
    others = ", ".join(f"{name} {share:.1%}" for name, share in joint.starts.items())
    return (
        f"all levels together: {'' if joint.start == FUSED else began}held-out error of the answer "
        f"{joint.answer_before:.4g} -> {joint.answer_after:.4g} in {joint.steps} steps "
        f"(other decisions at the start: {others})"
    )
