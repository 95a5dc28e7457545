"""A recipe becomes an output folder; a result that lies in one is evaluated or exported.

Whatever can be found wrong without computing is looked for first, cheapest first: the method, the device, the output
folder, the parents' code and weights, the data, whether the parents take the data and answer it with finite numbers,
and, where ONNX is wanted, whether the network has an ONNX form. Only then does the work begin, inside an
``OutputFolder``: it appears whole or not at all, and what was finished before an interruption is kept for ``resume``.
"""

import dataclasses
import hashlib
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from fxfuse.data import Unlabelled, check, in_label_space, input_names, samples_from
from fxfuse.device import pick_device
from fxfuse.errors import DataError, FuseError, MethodError, OutputError, RecipeError
from fxfuse.export import CLASSES_KEY, OnnxReport, load_result, to_onnx, to_pt2, to_safetensors
from fxfuse.forms import choose_form
from fxfuse.inputs import Example, guess
from fxfuse.label_space import class_axis, label_space
from fxfuse.methods import check_needs, customised
from fxfuse.output import OutputFolder, write_atomically
from fxfuse.passes.binding import bind
from fxfuse.passes.checking import outputs_at
from fxfuse.passes.importance import answers
from fxfuse.passes.verify import score
from fxfuse.pipeline import analyse, fuse
from fxfuse.presets import find_method
from fxfuse.progress import Progress, QuietProgress
from fxfuse.provenance import manifest, sha256_of
from fxfuse.recipe import DataSpec, Recipe, dump_recipe, identity, load_recipe, map_paths, split_source
from fxfuse.report import write_report
from fxfuse.samples import Samples, batches
from fxfuse.sources import LoadedParent, load_parent, load_target
from fxfuse.types import FuseResult, Score, parameter_count

RECIPE, MANIFEST, ONNX = "recipe.yaml", "manifest.json", "model.onnx"
CHECKED = 4096
"""How many evaluation samples are looked at before work starts; calibration samples all are."""
WHOLE = 2**30
"""Bytes in a folder of data up to which its files' contents are hashed; above, their names and sizes are."""


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """A finished run: the output folder, the fused network and its account, the ONNX file's check if there is one."""

    folder: Path
    result: FuseResult
    onnx: OnnxReport | None


@dataclass(frozen=True, slots=True)
class _Inputs:
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


def run(
    recipe: Recipe, *, overwrite: bool = False, resume: bool = False, progress: Progress | None = None
) -> RunOutcome:
    """Fuse as ``recipe`` says and write its output folder; relative paths are taken from the working folder.

    Raises a ``FuseError`` for anything that is wrong with the recipe or what it names; then no output folder is left.
    An interrupted run leaves its state in ``<output>.partial``: ``resume`` goes on with it, ``overwrite`` drops it.
    """
    progress = QuietProgress() if progress is None else progress
    started = time.perf_counter()
    _check_settings(recipe)
    assert recipe.output is not None
    device = pick_device(recipe.device)
    OutputFolder(recipe.output, {}, overwrite=overwrite, resume=resume).check()
    inputs = _load(recipe, progress)
    named = {**identity(recipe), "inputs": dict(inputs.files)}
    with OutputFolder(recipe.output, named, overwrite=overwrite, resume=resume) as output:
        if recipe.onnx:
            _check_onnx(recipe, inputs, progress)
        loaded = time.perf_counter()
        result = fuse(
            [parent.module for parent in inputs.parents],
            calibration=inputs.calibration,
            method=recipe.method,
            target=inputs.target,
            weights=recipe.shares(),
            names=recipe.names(),
            labels=recipe.labels(),
            budget=recipe.budget,
            router=recipe.router,
            importance=recipe.importance,
            statistics=recipe.statistics,
            options=recipe.options,
            base=None if inputs.base is None else inputs.base.module,
            granularity=recipe.granularity,
            fit=recipe.fit,
            finetune=recipe.finetune,
            head=recipe.head,
            evaluation=inputs.evaluation,
            example=inputs.example,
            device=str(device),
            seed=recipe.seed,
            leaves=recipe.leaves,
            submodule=recipe.submodule,
            front_end=recipe.front_end,
            progress=progress,
            checkpoint=output.checkpoint,
        )
        fused = time.perf_counter()
        notes = (f"{parent.name}: {note}" for parent in inputs.parents for note in parent.notes)
        timings = {"load and check": loaded - started, **result.timings, "fuse, all": fused - loaded}
        result = dataclasses.replace(result, notes=(*result.notes, *notes), timings=timings)
        with progress.start(None, "write"):
            report = _write(recipe, result, inputs, device, output)
    return RunOutcome(output.path, result, report)


def evaluate(folder: str | Path, data: DataSpec | str | None = None, device: str = "auto") -> tuple[Score, str]:
    """The figures of the network in an output folder, and what they were measured on.

    ``data`` is a spec, or a source that is read and preprocessed as the recipe beside the result says of its
    evaluation data (or else its calibration data); without ``data`` the recipe's own evaluation data are used. Raises
    a ``FuseError`` if the folder is no result or the data do not fit.
    """
    folder = Path(folder)
    where = pick_device(device)
    loaded = load_result(folder)
    samples = samples_from(data if isinstance(data, DataSpec) else _as_before(folder, data))
    module = move_to_device_pass(loaded.program, where).module()
    inputs, _ = samples.take(torch.arange(min(2, len(samples))))
    shapes = [tuple(x.shape[1:]) for x in inputs]
    if shapes != (wanted := [tuple(x.shape[1:]) for x in loaded.example]):
        raise DataError(
            f"{folder} takes samples of shape {_listed(wanted)}; {samples.description} has {_listed(shapes)}."
        )

    def network(*tensors: Tensor) -> Any:  # a function, because an exported module refuses to be told its mode
        return module(*tensors)

    figures = score("fused", network, samples, device=where)
    return dataclasses.replace(figures, parameters=parameter_count(module)), samples.description


def export(folder: str | Path, onnx: str | Path) -> OnnxReport:
    """Write the network in an output folder as ONNX, checked in onnxruntime. Raises a ``FuseError``."""
    loaded = load_result(folder)
    return to_onnx(loaded.program, loaded.example, onnx, level_table=loaded.levels)


def _as_before(folder: Path, source: str | None) -> DataSpec:
    """The recipe's evaluation data, or its calibration data if there are none; with another source if one is given."""
    recipe = load_recipe(folder / RECIPE)
    if source is None:
        if recipe.evaluation is None:
            raise DataError(f"The recipe in {folder} names no evaluation data; give some.")
        return recipe.evaluation
    spec = recipe.evaluation or recipe.calibration
    if spec is None:
        return DataSpec(source=source)
    kept = {key: getattr(spec, key) for key in ("inputs", "preprocessing", "batched")}
    if not isinstance(spec.labels, bool) and not str(spec.labels).endswith(".npy"):
        kept["labels"] = spec.labels
    return DataSpec(source=source, **kept)


# ------------------------------------------------------------------------------------------------- before the work


def _check_settings(recipe: Recipe) -> None:
    if recipe.output is None:
        raise RecipeError("There is no output folder: name one by --out, or by `output` in the recipe.")
    choose_form(find_method(recipe.method), recipe.method, recipe.budget, recipe.router)
    preset = customised(find_method(recipe.method), recipe.statistics, recipe.options)
    if preset.needs_data and recipe.calibration is None:
        raise MethodError(
            f"The method {recipe.method!r} needs calibration data: name some by --calibration, or by `calibration` in "
            "the recipe; a few hundred inputs without labels will do."
        )
    check_needs(preset, recipe.method, recipe.calibration is not None, recipe.base is not None, False)


def _load(recipe: Recipe, progress: Progress) -> _Inputs:
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
        _check_data(recipe, parents, calibration, evaluation)
        files = {path: digest for parent in parents for path, digest in parent.files.items()}
        for other in (made, base):
            files.update({} if other is None else other.files)
        if recipe.calibration is not None and calibration is not None:
            files.update(_hashes(recipe.calibration))
            files["calibration samples"] = fingerprint(calibration)
        others = {} if recipe.evaluation is None else _hashes(recipe.evaluation)
    width = None if recipe.target is None else recipe.target.width
    target = made.module if made is not None else width
    example = _example(parents[0], calibration if calibration is not None else evaluation, progress)
    return _Inputs(parents, target, base, calibration, evaluation, example, files, others)


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
        check(_unlabelled(samples), what=what, at_most=2)
        for parent in parents:
            found = _classes(parent, samples)
            classes = found if recipe.submodule is None else None
        if union is not None:
            classes = union.size
        read = samples if union is None else in_label_space(samples, union.names, what)
        check(read if _class_indices(read) else _unlabelled(read), classes, what=what, at_most=most)
    if recipe.head == "labels" and calibration is not None and not calibration.labelled:
        raise DataError(
            f"The head is to be fitted to labels, but the calibration data ({calibration.description}) has none: "
            "give labels, or choose the head 'probabilities'."
        )


def _classes(parent: LoadedParent, samples: Samples) -> int | None:
    """Between how many classes a parent decides, found by asking it; ``None`` if it does something else."""
    inputs, labels = samples.take(torch.arange(2))
    subject = f"parent {parent.name!r}"
    names = input_names(samples)
    bound = bind(parent.module, inputs if names is None else dict(zip(names, inputs, strict=True)), subject)
    outputs = answers(outputs_at(parent.module, bound, bound.tensors, subject))
    if not all(bool(y.isfinite().all()) for y in outputs):
        raise DataError(
            f"{subject} answers {samples.description} with NaN or infinite values: look at the scale of the data "
            "(`preprocessing`) and at the weights."
        )
    if not outputs or labels is None:
        return None
    axis = class_axis(outputs[0].shape, labels.shape)
    return None if axis is None else max(2, outputs[0].shape[axis])


def _unlabelled(samples: Samples) -> Samples:
    return Unlabelled(samples) if samples.labelled else samples


def _class_indices(samples: Samples) -> bool:
    """Whether there is one label per sample; labels per token or pixel, and targets of a regression, are others."""
    labels = samples.take(torch.arange(1))[1]
    return labels is not None and labels.ndim == 1 and not labels.is_floating_point()


def _check_onnx(recipe: Recipe, inputs: _Inputs, progress: Progress) -> None:
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
        to_onnx(program.module, program.example, Path(folder) / ONNX)


def _example(parent: LoadedParent, samples: Samples | None, progress: Progress) -> Example:
    """A few inputs, by name where the data has names; without data a guess, which is said."""
    if samples is None:
        tensor, stated = guess(parent.module, f"parent {parent.name!r}")
        progress.note(f"no data given: the parents are traced with the guessed input {stated}")
        return (tensor,)
    inputs, _ = samples.take(torch.arange(min(3, len(samples))))
    names = input_names(samples)
    return inputs if names is None else dict(zip(names, inputs, strict=True))


# ----------------------------------------------------------------------------------------------------- what went in


def fingerprint(samples: Samples) -> str:
    """SHA-256 of all samples as the network sees them: types, shapes and values of the inputs, and the labels."""
    digest = hashlib.sha256()
    for inputs, labels in batches(samples, 256):
        for x in inputs if labels is None else (*inputs, labels):
            digest.update(f"{x.dtype}{tuple(x.shape)}".encode())
            digest.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _hashes(spec: DataSpec) -> dict[str, str]:
    """The hashes of the files and folders that a data set was read from, as far as they are known."""
    place, _, factory = split_source(spec.source)
    places = [spec.root] if spec.root else []
    if not factory:
        places.append(spec.source)
    elif place.endswith(".py"):
        places.append(place)
    elif place != "torchvision" and (found := find_spec(place)) is not None and found.has_location:
        places.append(str(found.origin))
    if isinstance(spec.labels, str) and spec.labels.endswith(".npy"):
        places.append(spec.labels)
    paths = [(place, Path(place).expanduser()) for place in places]
    return {place: _hash_folder(path) if path.is_dir() else sha256_of(path) for place, path in paths}


def _hash_folder(folder: Path) -> str:
    """A hash of all files below a folder: of their contents, or of their names and sizes where that is too much."""
    sizes = {path: path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    whole = sum(sizes.values()) <= WHOLE
    digest = hashlib.sha256()
    for path, size in sizes.items():
        content = sha256_of(path) if whole else str(size)
        digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return ("contents:" if whole else "names and sizes:") + digest.hexdigest()


# ---------------------------------------------------------------------------------------------------- what comes out


def _write(
    recipe: Recipe, result: FuseResult, inputs: _Inputs, device: torch.device, output: OutputFolder
) -> OnnxReport | None:
    """Write everything into the folder under way; the manifest last."""
    folder, example = output.folder, result.analysis.program.example
    module = result.module
    named = {CLASSES_KEY: json.dumps(result.classes)} if result.classes else None
    weights = to_safetensors(module, folder / "model.safetensors", named)
    to_pt2(module, example, folder / "model.pt2")
    write_report(result, folder)
    report = None
    if recipe.onnx:
        rows = json.loads((folder / "levels.json").read_text(encoding="utf-8"))["levels"]
        try:
            report = to_onnx(module, example, folder / ONNX, level_table=rows, classes=result.classes)
        except FuseError as error:
            message = f"{error} (the fused levels are kept: --resume without --onnx writes the other files)"
            raise type(error)(message) from error
    # paths in the file are relative to where the folder will stand
    again = map_paths(recipe.model_copy(update={"output": None}), lambda path: str(Path(path).expanduser().absolute()))
    account = manifest(
        {**inputs.files, **inputs.others},
        device,
        recipe.seed,
        method=recipe.method,
        parents=[
            {"name": parent.name, "description": parent.description, "share": share, "labels": spec.labels}
            for parent, spec, share in zip(inputs.parents, recipe.parents, recipe.shares(), strict=True)
        ],
        calibration=inputs.calibration and inputs.calibration.description,
        evaluation=inputs.evaluation and inputs.evaluation.description,
        classes=list(result.classes),
        settings=_jsonable(dict(result.settings)),
        timings=dict(result.timings),
        levels=[dataclasses.asdict(level) for level in result.levels],
        scores=[dataclasses.asdict(row) for row in result.scores],
        notes=list(result.notes),
        outputs={file.name: sha256_of(file) for file in (weights, folder / "levels.json")},
        onnx=report and {**dataclasses.asdict(report), "path": ONNX},
    )
    try:
        (folder / RECIPE).write_text(dump_recipe(again, output.path), encoding="utf-8")
        write_atomically(folder / MANIFEST, (json.dumps(account, indent=1) + "\n").encode())
    except OSError as error:
        raise OutputError(f"The output folder {output.path} cannot be written: {error.strerror or error}.") from error
    return report


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _listed(shapes: list[tuple[int, ...]]) -> str:
    return " and ".join("x".join(map(str, shape)) or "scalar" for shape in shapes)
