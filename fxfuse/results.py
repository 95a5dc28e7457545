"""A result that lies in an output folder, measured on data or written in another format."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass

from fxfuse.data import class_names, input_names, samples_from
from fxfuse.device import pick_device
from fxfuse.errors import DataError
from fxfuse.export import LoadedResult, OnnxReport, load_result, to_onnx
from fxfuse.export.tools import arguments
from fxfuse.label_space import class_count
from fxfuse.naming import in_order
from fxfuse.numbering import check_named, in_label_space, numbered_alike
from fxfuse.output import check_file
from fxfuse.passes.importance import answers
from fxfuse.passes.verify import score
from fxfuse.recipe import DataSpec, load_recipe, read_alike
from fxfuse.samples import Samples
from fxfuse.types import Score, parameter_count
from fxfuse.writing import RECIPE


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
    samples = in_label_space(samples, loaded.classes) if loaded.classes else _as_trained(folder, samples)
    if set(input_names(samples) or ()) & set(loaded.names):  # a part of a network calls its inputs otherwise
        samples = in_order(samples, loaded.names)
    module = move_to_device_pass(loaded.program, where).module()
    inputs, _ = samples.take(torch.arange(min(2, len(samples))))
    shapes = [tuple(x.shape[1:]) for x in inputs]
    if shapes != (wanted := [tuple(x.shape[1:]) for x in loaded.example]):
        raise DataError(
            f"{folder} takes samples of shape {_listed(wanted)}; {samples.description} has {_listed(shapes)}."
        )

    if not samples.labelled:
        raise DataError(f"{samples.description} has no labels, so there is nothing to measure; give labelled data.")

    def network(*tensors: Tensor) -> Any:  # a function, because an exported module refuses to be told its mode
        if not all(bool(x.isfinite().all()) for x in tensors):
            raise DataError(f"{samples.description} has NaN or infinite values; every input must be finite.")
        args, kwargs = arguments(tensors, loaded.keywords)
        try:
            return module(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever the network's operators raise at such inputs
            raise DataError(_rejected(folder, samples, tensors, loaded, error)) from error

    if not loaded.classes:
        _check_named(samples, loaded)
    figures = score("fused", network, samples, device=where)
    return dataclasses.replace(figures, parameters=parameter_count(module)), samples.description


def _rejected(
    folder: Path, samples: Samples, tensors: tuple[Tensor, ...], loaded: LoadedResult, error: Exception
) -> str:
    """Why a result cannot run on inputs of the right shapes: their types, or their values."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    kinds, wanted = (
        " and ".join(str(x.dtype).removeprefix("torch.") for x in inputs) for inputs in (tensors, loaded.example)
    )
    cure = f"it takes {wanted}" if kinds != wanted else "look at their values"
    return f"{folder} cannot run on {samples.description}, which holds {kinds}: {reason}; {cure}."


def export(folder: str | Path, onnx: str | Path) -> OnnxReport:
    """Write the network in an output folder as ONNX, checked in onnxruntime. Raises a ``FuseError``."""
    check_file(onnx)
    loaded = load_result(folder)
    return to_onnx(loaded.program, loaded.example, onnx, level_table=loaded.levels, classes=loaded.classes)


def _as_before(folder: Path, source: str | None) -> DataSpec:
    """The recipe's evaluation data, or its calibration data if there are none; with another source if one is given."""
    recipe = load_recipe(folder / RECIPE)
    if source is None:
        if recipe.evaluation is None:
            raise DataError(f"The recipe in {folder} names no evaluation data; give some.")
        return recipe.evaluation
    spec = recipe.evaluation or recipe.calibration
    return DataSpec(source=source) if spec is None else read_alike(spec, source)


def _as_trained(folder: Path, samples: Samples) -> Samples:
    """Labels with the numbers that the run's own data give to classes of these names, as far as those are there."""
    if class_names(samples) is None or not (folder / RECIPE).is_file():
        return samples
    recipe = load_recipe(folder / RECIPE)
    for spec in (recipe.calibration, recipe.evaluation):
        with contextlib.suppress(DataError):  # the run's data may be gone; check_named then judges what was given
            own = None if spec is None else samples_from(spec)
            if own is not None and set(class_names(own) or ()) >= set(class_names(samples) or ()):
                return numbered_alike(own, samples)[1] or samples
    return samples


def _check_named(samples: Samples, loaded: LoadedResult) -> None:
    """See :func:`fxfuse.numbering.check_named`."""
    with torch.no_grad():
        args, kwargs = arguments(loaded.example, loaded.keywords)
        outputs = answers(loaded.module(*args, **kwargs))
    classes = class_count(outputs[0].shape) if outputs else None
    if classes is not None:
        check_named(samples, classes, "data")


def _listed(shapes: list[tuple[int, ...]]) -> str:
    return " and ".join("x".join(map(str, shape)) or "scalar" for shape in shapes)
