"""A recipe becomes an output folder.

Whatever can be found wrong without computing is looked for first, cheapest first: the method, the device, the output
folder, and all that the recipe names (:mod:`fxfuse.loading`). Only then does the work begin, inside an
``OutputFolder``: it appears whole or not at all, and what was finished before an interruption is kept for ``resume``.
"""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from fxfuse.device import pick_device
from fxfuse.errors import MismatchError
from fxfuse.export import OnnxReport
from fxfuse.loading import Inputs, check_onnx_form, check_settings, load_inputs, spelling_hint
from fxfuse.output import Checkpoint, OutputFolder
from fxfuse.pipeline import fuse
from fxfuse.progress import Progress, QuietProgress
from fxfuse.recipe import Recipe, identity
from fxfuse.types import FuseResult
from fxfuse.writing import write_result


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """A finished run: the output folder, the fused network and its account, the ONNX file's check if there is one."""

    folder: Path
    result: FuseResult
    onnx: OnnxReport | None


def run(
    recipe: Recipe, *, overwrite: bool = False, resume: bool = False, progress: Progress | None = None
) -> RunOutcome:
    """Fuse as ``recipe`` says and write its output folder; relative paths are taken from the working folder.

    Raises a ``FuseError`` for anything that is wrong with the recipe or what it names; then no output folder is left.
    An interrupted run leaves its state in ``<output>.partial``: ``resume`` goes on with it, ``overwrite`` drops it.
    """
    progress = QuietProgress() if progress is None else progress
    started = time.perf_counter()
    check_settings(recipe)
    assert recipe.output is not None  # checked
    device = pick_device(recipe.device)
    OutputFolder(recipe.output, {}, overwrite=overwrite, resume=resume).check()
    inputs = load_inputs(recipe, progress)
    named = {**identity(recipe), "inputs": dict(inputs.files)}
    with OutputFolder(recipe.output, named, overwrite=overwrite, resume=resume) as output:
        if recipe.onnx:
            check_onnx_form(recipe, inputs, progress)
        loaded = time.perf_counter()
        try:
            result = _fuse(recipe, inputs, device, progress, output.checkpoint)
        except MismatchError as error:
            raise MismatchError(f"{error}{spelling_hint(recipe)}") from error
        fused = time.perf_counter()
        notes = (f"{parent.name}: {note}" for parent in inputs.parents for note in parent.notes)
        timings = {"load and check": loaded - started, **result.timings, "fuse, all": fused - loaded}
        result = dataclasses.replace(result, notes=(*result.notes, *notes), timings=timings)
        with progress.start(None, "write"):
            report = write_result(recipe, result, inputs, device, output)
    return RunOutcome(output.path, result, report)


def _fuse(
    recipe: Recipe, inputs: Inputs, device: torch.device, progress: Progress, checkpoint: Checkpoint
) -> FuseResult:
    """``fuse`` with every entry of the recipe."""
    return fuse(
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
        copy=False,  # nobody else has the networks that were loaded
        progress=progress,
        checkpoint=checkpoint,
    )
