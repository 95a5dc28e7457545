"""From parents and data to one network: the stages in their order.

``trace -> normalize -> axes -> partition -> correspond -> calibrate -> group -> rewrite -> fit -> verify``. Every
stage is a function of its own that takes what those before it have made; this file only hands their results on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fxfuse.device import deterministic, pick_device
from fxfuse.methods import Given, check_needs
from fxfuse.passes.fitting import Store
from fxfuse.presets import DEFAULT
from fxfuse.progress import Progress, QuietProgress
from fxfuse.recipe import FinetuneSettings, FitSettings, FrontEndChoice, Head
from fxfuse.stages.analysis import Example, analyse, match_parents
from fxfuse.stages.arguments import (
    Data,
    Host,
    Job,
    Tracing,
    check_modules,
    choose_method,
    choose_training,
    describe_parents,
    read_data,
)
from fxfuse.stages.building import build, observe
from fxfuse.stages.clock import Clock
from fxfuse.stages.comparing import Compared, judge
from fxfuse.stages.training import train
from fxfuse.types import FuseResult, Granularity


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
    front_end: FrontEndChoice = "auto",
    copy: bool = True,
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
    without data. Without ``copy`` the graphs of the parents have the parents' own parameters, not copies: it saves the
    memory of all parents, who must then not be trained on while the result is in use. The same seed on the same
    machine gives the same bits.

    Returns the fused network as ``result.module`` and the account of how it came about. Raises subclasses of
    :class:`fxfuse.errors.FuseError` for anything that cannot work, before any long work where that is possible.
    """
    chosen = choose_method(
        method, statistics=statistics, options=options, importance=importance, budget=budget, router=router
    )
    check_needs(chosen.preset, method, calibration is not None, base is not None, precisions is not None)
    check_modules(parents, target, base)
    job = Job(
        method=chosen,
        parents=describe_parents(len(parents), names, weights, labels),
        tracing=Tracing(granularity, leaves, submodule, front_end, copy),
        training=choose_training(chosen, head, fit, finetune),
        host=Host(pick_device(device), seed, progress or QuietProgress(), checkpoint),
    )
    clock = Clock()
    with clock.stage("read data"):
        data = read_data(job, calibration, evaluation)
    with clock.stage("analyse"):
        matched = match_parents(job, parents, target, base, example, data)
        data = matched.data
    with deterministic():
        with clock.stage("calibrate"):
            observed = observe(job, matched, data, precisions)
        with clock.stage("group and rewrite"):
            built = build(job, matched, data, observed)
        trained = train(job, matched, data, built, clock)
    fused = built.made.module.to("cpu").eval()
    compared = Compared()
    if compare and data.any is not None:
        with clock.stage("verify"):
            compared = judge(job, matched, data, built, trained)
    return FuseResult(
        module=fused,
        analysis=built.made.analysis(fused, built.pairs.reference, granularity),
        parents=built.pairs.parents,
        groupings=built.groupings,
        levels=trained.levels,
        scores=compared.scores,
        classes=job.parents.class_names,
        notes=(*matched.notes, *built.notes, *trained.notes, *compared.notes),
        timings=clock.seconds,
        settings=_settings(job, data),
    )


def _settings(job: Job, data: Data) -> dict[str, Any]:
    """What was asked for, as it is written into the account."""
    preset, form = job.method.preset, job.method.form
    samples = {"calibration": data.calibration, "evaluation": data.evaluation}
    return {
        "method": job.method.name,
        "statistics": preset.statistics,
        "options": {**preset.options, **preset.merge_options},
        "importance": job.method.importance,
        "head": job.training.head,
        "seed": job.host.seed,
        "device": str(job.host.device),
        "weights": list(job.parents.shares),
        "parents": list(job.parents.names),
        "budget": form.stated,
        "router": form.router,
        **{what: None if own is None else f"{len(own)} samples: {own.description}" for what, own in samples.items()},
    }


__all__ = ["analyse", "fuse"]
