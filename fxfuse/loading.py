"""All that a run reads, loaded and looked through before the work begins, cheapest first.

The method, then the parents' code and weights, then the data, and whether the parents take the data and answer it with
finite numbers; where ONNX is wanted, whether the network has an ONNX form.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fxfuse.data import few_inputs, samples_from
from fxfuse.data_checks import check
from fxfuse.errors import DataError, MethodError, RecipeError
from fxfuse.export import to_onnx
from fxfuse.fingerprints import data_hashes, fingerprint
from fxfuse.inputs import Example, guess
from fxfuse.label_space import class_axis, class_count, label_space
from fxfuse.methods import check_needs
from fxfuse.numbering import check_named, in_label_space, numbered_alike
from fxfuse.passes.binding import bind
from fxfuse.passes.checking import outputs_at
from fxfuse.passes.importance import answers
from fxfuse.pipeline import analyse
from fxfuse.progress import Progress
from fxfuse.recipe import Recipe, split_source
from fxfuse.samples import Samples, Unlabelled
from fxfuse.sources import LoadedParent, load_parent, load_target
from fxfuse.stages.arguments import choose_method

CHECKED = 4096
"""How many evaluation samples are looked at before work starts; calibration samples all are, and so are all labels that
can be had without reading inputs."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """All that a run reads. ``example`` shows what the parents take; ``files`` maps what the fused weights depend on
    to its hash, ``others`` the rest."""

    parents: tuple[LoadedParent, ...]
    target: nn.Module | float | None
    base: LoadedParent | None
    calibration: Samples | None
    evaluation: Samples | None
    example: Example
    files: Mapping[str, str]
    others: Mapping[str, str]


def check_settings(recipe: Recipe) -> None:
    """Raise a ``FuseError`` for a method that is unknown or lacks what it needs, and without an output folder."""
    if recipe.output is None:
        raise RecipeError("There is no output folder: name one by --out, or by `output` in the recipe.")
    preset = choose_method(
        recipe.method,
        statistics=recipe.statistics,
        options=recipe.options,
        importance=recipe.importance,
        budget=recipe.budget,
        router=recipe.router,
    ).preset
    if preset.needs_data and recipe.calibration is None:
        raise MethodError(
            f"The method {recipe.method!r} needs calibration data: name some by --calibration, or by `calibration` in "
            "the recipe; a few hundred inputs without labels will do."
        )
    check_needs(preset, recipe.method, recipe.calibration is not None, recipe.base is not None, False)


def load_inputs(recipe: Recipe, progress: Progress) -> Inputs:
    """Load all that a recipe names. Raises a ``FuseError`` for what cannot be loaded or does not go together."""
    with progress.start(None, "load the parents"):
        pairs = zip(recipe.parents, recipe.names(), strict=True)
        parents = tuple(load_parent(spec, name) for spec, name in pairs)
        made = None if recipe.target is None else load_target(recipe.target)
        base = None if recipe.base is None else load_parent(recipe.base, "base")
    for parent in parents:
        progress.note(f"parent {parent.name}: {parent.description}")
        for note in parent.notes:
            progress.note(f"parent {parent.name}: {note}")
    with progress.start(None, "check the data"):
        calibration = None if recipe.calibration is None else samples_from(recipe.calibration)
        evaluation = None if recipe.evaluation is None else samples_from(recipe.evaluation)
        if recipe.labels() is None:
            calibration, evaluation = numbered_alike(calibration, evaluation)
        _check_data(recipe, parents, calibration, evaluation)
        files = {path: digest for parent in parents for path, digest in parent.files.items()}
        for other in (made, base):
            files.update({} if other is None else other.files)
        if recipe.calibration is not None and calibration is not None:
            files.update(data_hashes(recipe.calibration))
            files["calibration samples"] = fingerprint(calibration)
        others = {} if recipe.evaluation is None else data_hashes(recipe.evaluation)
    width = None if recipe.target is None else recipe.target.width
    target = made.module if made is not None else width
    example = _example(parents[0], calibration if calibration is not None else evaluation, progress)
    return Inputs(parents, target, base, calibration, evaluation, example, files, others)


def _check_data(
    recipe: Recipe, parents: tuple[LoadedParent, ...], calibration: Samples | None, evaluation: Samples | None
) -> None:
    """Everything about the data, and whether every parent takes them."""
    classes: int | None = None
    maps = recipe.labels()
    union = None if maps is None else label_space(maps, recipe.names(), recipe.shares())
    for samples, what, most in ((calibration, "calibration data", None), (evaluation, "evaluation data", CHECKED)):
        if samples is None:
            continue
        check(Unlabelled(samples), what=what, at_most=2)
        for place, parent in enumerate(parents):
            outputs = _outputs(parent, samples)
            found = _classes(outputs, samples)
            classes = found if recipe.submodule is None else None
            own = None if maps is None else maps[place]
            if own is not None and recipe.submodule is None:
                _check_map(parent.name, len(own), outputs)
        if union is not None:
            classes = union.size
        read = samples if union is None else in_label_space(samples, union.names, what)
        check(read, classes, what=what, at_most=most, judged=union is None and samples is evaluation)
        if union is None and classes is not None:
            check_named(read, classes, what)
    if recipe.head == "labels" and calibration is not None and not calibration.labelled:
        raise DataError(
            f"The head is to be fitted to labels, but the calibration data ({calibration.description}) has none: "
            "give labels, or choose the head 'probabilities'."
        )


def _outputs(parent: LoadedParent, samples: Samples) -> list[Tensor]:
    """What a parent answers to two samples, which must be finite."""
    subject = f"parent {parent.name!r}"
    bound = bind(parent.module, few_inputs(samples, 2), subject)
    outputs = answers(outputs_at(parent.module, bound, bound.tensors, subject))
    if not all(bool(y.isfinite().all()) for y in outputs):
        raise DataError(
            f"{subject} answers {samples.description} with NaN or infinite values: look at the scale of the data "
            "(`preprocessing`) and at the weights."
        )
    return outputs


def _check_map(name: str, classes: int, outputs: list[Tensor]) -> None:
    """Raise ``MethodError`` for a label map that is of no output's length."""
    counts = [y.shape[axis] for y in outputs if (axis := class_axis(tuple(y.shape))) is not None]
    if counts and classes not in counts:
        raise MethodError(
            f"the label map of {name} has {classes} entries, but the network has {' and '.join(map(str, counts))} "
            "outputs; name their classes in their order, each once."
        )


def _classes(outputs: list[Tensor], samples: Samples) -> int | None:
    """Between how many classes a parent decides; ``None`` if it does something else."""
    labels = samples.take(torch.arange(2))[1]
    if not outputs or labels is None:
        return None
    return class_count(outputs[0].shape, labels.shape)


def check_onnx_form(recipe: Recipe, inputs: Inputs, progress: Progress) -> None:
    """Write a parent's graph, which the fused network will have up to widths, as ONNX and throw it away."""
    module = inputs.target if isinstance(inputs.target, nn.Module) else inputs.parents[0].module
    with progress.start(None, "check that there is an ONNX form"), tempfile.TemporaryDirectory() as folder:
        program = analyse(
            module,
            inputs.example,
            name=inputs.parents[0].name,
            granularity=recipe.granularity,
            leaves=recipe.leaves,
            submodule=recipe.submodule,
            front_end=recipe.front_end,
        ).program
        to_onnx(program.module, program.example, Path(folder) / "trial.onnx")


def spelling_hint(recipe: Recipe) -> str:
    """What to do about graphs that differ because some come from exported programs and some from modules."""
    named = [*recipe.parents, *(spec for spec in (recipe.target, recipe.base) if spec is not None)]
    sources = [spec.source for spec in named if spec.source is not None]
    programs = [source for source in sources if source.endswith(".pt2")]
    if len(programs) in (0, len(sources)):
        return ""
    other = next(source for source in sources if source not in programs)
    name, place = Path(programs[0]).name, f"{Path(split_source(other)[0]).name}:{split_source(other)[2]}"
    return (
        f". {name} is an exported program, whose operators are spelled otherwise than a module's: give it as the "
        f"weights of the module's source, {place}={name}"
    )


def _example(parent: LoadedParent, samples: Samples | None, progress: Progress) -> Example:
    """A few inputs, by name where the data has names; without data a guess, which is said."""
    if samples is None:
        how = "give a few inputs as data (--calibration, or `calibration` in the recipe), which show what it takes"
        tensor, stated = guess(parent.module, f"parent {parent.name!r}", how)
        progress.note(f"no data given: the parents are traced with the guessed input {stated}")
        return (tensor,)
    return few_inputs(samples)
