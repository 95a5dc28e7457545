"""After fusion, on request: fine-tune the fused network, and the best parent on the same budget beside it.

What training longer would have brought to a parent alone is no merit of fusion, so a fine-tuned network never stands in
a comparison without that control (a parent of its own classes and widths, same samples, steps and optimiser).
"""

import copy
from dataclasses import dataclass, field, replace

import torch
from torch import fx, nn

from fxfuse.passes.augment import Transformation
from fxfuse.passes.finetune import FinetunePlan, FinetuneReport, finetune
from fxfuse.passes.fitting import Store
from fxfuse.passes.objective import make_objective
from fxfuse.passes.observe import placed
from fxfuse.passes.teacher import Teacher
from fxfuse.progress import Progress
from fxfuse.recipe import FinetuneSettings
from fxfuse.samples import Samples

BEFORE, CONTROL = "fused, before fine-tuning", "best parent, fine-tuned"


@dataclass(frozen=True, slots=True)
class Finetuned:
    """Further networks for the comparison, by the names of their rows, and what happened in words."""

    others: dict[str, nn.Module] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def plan_of(settings: FinetuneSettings, transformations: tuple[Transformation, ...]) -> FinetunePlan:
    """The settings as a plan."""
    return FinetunePlan(
        epochs=settings.epochs,
        towards=settings.towards,
        optimizer=settings.optimizer,
        lr=settings.lr,
        options=settings.options,
        schedule=settings.schedule,
        batch_size=settings.batch_size,
        patience=settings.patience,
        transformations=transformations,
    )


def fine_tune(
    fused: fx.GraphModule,
    teacher: Teacher,
    samples: Samples,
    plan: FinetunePlan,
    *,
    device: torch.device,
    seed: int,
    progress: Progress,
    store: Store | None = None,
) -> Finetuned:
    """Fine-tune ``fused`` in place. The control is left out, and that is said, where parents know other classes."""
    before = copy.deepcopy(fused).to("cpu")
    report = finetune(
        fused, teacher, samples, plan, device=device, seed=seed, progress=progress, name="fused", store=store
    )
    notes = [_said("the fused network", plan, report)]
    others: dict[str, nn.Module] = {BEFORE: before}
    if teacher.union is not None:
        notes.append("no parent was fine-tuned beside it: none knows all classes")
        return Finetuned(others, tuple(notes))
    index = _best_parent(teacher, samples, plan, device)
    program = teacher.pairs.parents[index].program
    control = copy.deepcopy(program.module).to(device)
    report = finetune(
        control, teacher, samples, plan, device=device, seed=seed, progress=progress, name="best parent", store=store
    )
    notes.append(_said(f"the control, {program.name}", plan, report))
    others[CONTROL] = control.to("cpu")
    return Finetuned(others, tuple(notes))


def _said(who: str, plan: FinetunePlan, report: FinetuneReport) -> str:
    goal = "labels" if plan.towards == "labels" else "the parents' combined answer"
    how = f"{report.epochs} epochs, {plan.optimizer}, rate {plan.lr:g}"
    change = (
        f"{report.before:.4g} -> {report.after:.4g}" if report.best else f"{report.before:.4g}, no epoch lowered it"
    )
    return f"{who} was fine-tuned on {goal} ({how}): held-out loss {change}"


def _best_parent(teacher: Teacher, samples: Samples, plan: FinetunePlan, device: torch.device) -> int:
    """The parent that decides like the ensemble, or the labels, most often, of those that have a share."""
    goal = teacher.towards_labels() if plan.towards == "labels" else teacher
    first = placed(teacher.pairs.parents[0].program.module, device)
    objective = make_objective(first, goal.outputs, goal, samples, device)
    wrong = [0.0 if share > 0 else float("inf") for share in teacher.weights]
    with torch.no_grad():
        for batch in torch.split(torch.arange(len(samples)), plan.batch_size):
            lesson = objective.lesson(batch)
            for p, parent in enumerate(objective.parents):
                wrong[p] += len(batch) * replace(objective, graph=parent).disagreement(lesson)
    return min(range(len(wrong)), key=wrong.__getitem__)
