"""What a run leaves behind: weights, programs, the report, the recipe, and the manifest, which comes last."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from fxfuse.errors import FuseError, OutputError
from fxfuse.export import CLASSES_KEY, OnnxReport, to_onnx, to_pt2, to_safetensors
from fxfuse.loading import Inputs
from fxfuse.output import OutputFolder, write_atomically
from fxfuse.provenance import manifest, sha256_of
from fxfuse.recipe import Recipe, dump_recipe, map_paths
from fxfuse.report import write_report
from fxfuse.types import FuseResult

RECIPE, MANIFEST, ONNX = "recipe.yaml", "manifest.json", "model.onnx"


def write_result(
    recipe: Recipe, result: FuseResult, inputs: Inputs, device: torch.device, output: OutputFolder
) -> OnnxReport | None:
    """Write everything into the folder under way; the manifest last."""
    folder, example = output.folder, result.analysis.program.example
    module = result.module
    named = {CLASSES_KEY: json.dumps(result.classes)} if result.classes else None
    weights = to_safetensors(module, folder / "model.safetensors", named)
    to_pt2(module, example, folder / "model.pt2", keywords=result.analysis.program.keywords)
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
    account = _account(recipe, result, inputs, device)
    account["outputs"] = {file.name: sha256_of(file) for file in (weights, folder / "levels.json")}
    account["onnx"] = report and {**dataclasses.asdict(report), "path": ONNX}
    try:
        (folder / RECIPE).write_text(dump_recipe(again, output.path), encoding="utf-8")
        write_atomically(folder / MANIFEST, (json.dumps(account, indent=1) + "\n").encode())
    except OSError as error:
        raise OutputError(f"The output folder {output.path} cannot be written: {error.strerror or error}.") from error
    return report


def _account(recipe: Recipe, result: FuseResult, inputs: Inputs, device: torch.device) -> dict[str, Any]:
    """What went in, what was done, and what came of it, as JSON values."""
    return manifest(
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
    )


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))
