"""What is asked for, checked: all that can be found wrong before any work is, as one record that every stage reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxfuse.data import samples_from
from fxfuse.data_checks import check
from fxfuse.errors import MethodError
from fxfuse.forms import Chosen, choose_form
from fxfuse.label_space import LabelSpace, label_space
from fxfuse.methods import customised
from fxfuse.naming import with_inputs_of
from fxfuse.numbering import in_label_space, numbered_alike
from fxfuse.passes.descent import make_optimizer
from fxfuse.passes.fitting import Store
from fxfuse.passes.importance import ImportanceName, find_importance
from fxfuse.presets import Preset, find_method
from fxfuse.progress import Progress
from fxfuse.recipe import FinetuneSettings, FitSettings, FrontEndChoice, Head
from fxfuse.samples import Samples
from fxfuse.types import Granularity

LOOKED_AT = 4096
"""How many samples are looked at before the work starts."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The method, by ``name``, with what was changed of it: its ``preset``, the ``form`` of the network that comes out
    and the ``importance`` that weighs neurons."""

    name: str
    preset: Preset
    form: Chosen
    importance: ImportanceName


@dataclass(frozen=True, slots=True)
class Parents:
    """What is known of the parents but for their networks, an entry each: their ``names``, their ``shares``, which sum
    to 1, and which classes of the ``union`` they know, where label maps say so."""

    names: tuple[str, ...]
    shares: tuple[float, ...]
    union: LabelSpace | None

    def classes(self, parent: int) -> int | None:
        """How many classes a parent knows, where label maps say so."""
        return None if self.union is None else len(self.union.maps[parent])

    @property
    def class_names(self) -> tuple[str, ...]:
        """The union's classes; none without label maps."""
        return () if self.union is None else self.union.names


@dataclass(frozen=True, slots=True)
class Tracing:
    """How graphs are made of modules, and cut into levels. With ``copy`` the graphs have parameters of their own."""

    granularity: Granularity = "block"
    leaves: Sequence[str] = ()
    submodule: str | None = None
    front_end: FrontEndChoice = "auto"
    copy: bool = True


@dataclass(frozen=True, slots=True)
class Training:
    """What the network is trained towards (``head``), how its levels are fitted, and how it is tuned afterwards."""

    head: Head
    fit: FitSettings
    finetune: FinetuneSettings


@dataclass(frozen=True, slots=True)
class Host:
    """Where the work is done: the device, the seed of all that is drawn, who hears of it and who keeps it."""

    device: torch.device
    seed: int
    progress: Progress
    store: Store | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """All that is asked for, but for the networks and the data."""

    method: Choice
    parents: Parents
    tracing: Tracing
    training: Training
    host: Host


@dataclass(frozen=True, slots=True)
class Data:
    """What is fitted to, and what is only judged on."""

    calibration: Samples | None
    evaluation: Samples | None

    @property
    def any(self) -> Samples | None:
        """What there is to judge on: the evaluation data, or else the calibration data."""
        return self.calibration if self.evaluation is None else self.evaluation


def choose_method(
    name: str,
    *,
    statistics: str | None = None,
    options: Mapping[str, Any] | None = None,
    importance: str | None = None,
    budget: float | str | None = None,
    router: str | None = None,
) -> Choice:
    """A method with the user's changes. Raises ``MethodError`` for unknown names and what does not go together."""
    preset = customised(find_method(name), statistics, options or {})
    wanted = importance or preset.importance
    find_importance(wanted)
    return Choice(name, preset, choose_form(preset, name, budget, router), wanted)  # type: ignore[arg-type]  # found


def check_modules(parents: object, target: object, base: object) -> None:
    """Raise ``MethodError`` for parents, a target or a base model of another kind than ``fuse`` takes."""
    if isinstance(parents, nn.Module | Mapping) or not isinstance(parents, Sequence):
        raise MethodError(f"parents must be a list of networks. Got a {type(parents).__name__}: write [a, b].")
    others = [("base", base)] if base is not None else []
    if target is not None and not isinstance(target, int | float):
        others.append(("target", target))
    for what, module in [*((f"parent {i}", parent) for i, parent in enumerate(parents)), *others]:
        if not isinstance(module, nn.Module):
            hint = "; build the network and load the state into it" if isinstance(module, Mapping) else ""
            raise MethodError(f"{what} must be a torch.nn.Module. Got a {type(module).__name__}{hint}.")


def describe_parents(
    count: int,
    names: Sequence[str] | None,
    weights: Sequence[float] | None,
    labels: Sequence[Sequence[str | int] | None] | None,
) -> Parents:
    """What is said of ``count`` parents. Raises ``MethodError`` where lists are not one entry long for each."""
    if count == 0:
        raise MethodError("fuse needs at least one parent. Got none.")
    if names is not None and len(names) != count:
        raise MethodError(f"names must have one entry per parent. Got {len(names)} for {count} parents.")
    called = tuple(names or (f"parent {i}" for i in range(count)))
    shares = _shares(count, weights)
    return Parents(called, shares, None if labels is None else label_space(labels, called, shares))


def _shares(count: int, weights: Sequence[float] | None) -> tuple[float, ...]:
    given = [1.0] * count if weights is None else [float(w) for w in weights]
    if len(given) != count:
        raise MethodError(f"weights must have one entry per parent. Got {len(given)} for {count} parents.")
    if any(not 0 <= w < float("inf") for w in given) or sum(given) <= 0:
        raise MethodError(f"weights must be at least 0 and not all 0. Got {given}.")
    return tuple(w / sum(given) for w in given)


def choose_training(method: Choice, head: Head, fit: FitSettings | None, finetune: FinetuneSettings | int) -> Training:
    """How the network is to be trained. Raises ``MethodError`` for an optimiser that cannot be made, and for what
    changes the network as a whole where parents stay as branches."""
    if fit is not None and not isinstance(fit, FitSettings):
        raise MethodError(
            f"fit must be a FitSettings, such as fxfuse.FitSettings(steps=100). Got a {type(fit).__name__}."
        )
    if not isinstance(finetune, FinetuneSettings | int):
        raise MethodError(f"finetune must be epochs or a FinetuneSettings. Got a {type(finetune).__name__}.")
    tuning = finetune if isinstance(finetune, FinetuneSettings) else FinetuneSettings(epochs=finetune)
    training = Training(head, fit or FitSettings(), tuning)
    if tuning.epochs:
        make_optimizer(tuning.optimizer, [torch.zeros(1, requires_grad=True)], tuning.lr, tuning.options)
    asked = {"finetune": tuning.epochs > 0, "repair: rescale": training.fit.repair == "rescale"}
    form = method.form
    branches = form.form != "fused" or (form.budget is not None and form.dial == "levels")
    for what, wanted in asked.items():
        if wanted and branches:
            raise MethodError(
                f"method {method.name!r} keeps parents as branches, which {what!r} does not train or rescale; "
                "leave it out, or take a method that makes one network"
            )
    return training


def read_data(job: Job, calibration: Any, evaluation: Any) -> Data:
    """The data as samples, labels as the fused head numbers them.

    Raises ``DataError`` for data that cannot be used, ``MethodError`` for labels that are needed and not there.
    """
    names = job.parents.class_names
    fitted = None if calibration is None else in_label_space(samples_from(calibration), names)
    judged = None if evaluation is None else in_label_space(samples_from(evaluation), names)
    if not names:
        fitted, judged = numbered_alike(fitted, judged)
    if fitted is not None:
        check(fitted, at_most=LOOKED_AT)
    if judged is not None:
        check(judged, what="evaluation data", at_most=LOOKED_AT, judged=not names)
    if fitted is not None and judged is not None:
        judged = with_inputs_of(fitted, judged)
    labelled = fitted is not None and fitted.labelled
    training = job.training
    if training.head == "labels" and not labelled:
        raise MethodError("head 'labels' needs labelled calibration data; give labels, or take 'probabilities'")
    if training.finetune.epochs and fitted is None:
        raise MethodError("fine-tuning needs calibration data")
    if training.finetune.epochs and training.finetune.towards == "labels" and not labelled:
        raise MethodError("fine-tuning on labels needs labelled calibration data; give labels, or take 'ensemble'")
    return Data(fitted, judged)
