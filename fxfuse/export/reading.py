"""An output folder read back."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from fxfuse.errors import SourceError, WeightsError
from fxfuse.export.tools import argument_names, first_line, keywords_of, quiet
from fxfuse.export.weights_file import CLASSES_KEY


@dataclass(frozen=True, slots=True)
class LoadedResult:
    """An output folder read back: ``module`` computes the fused network, ``example`` is a small batch of its inputs,
    ``names`` what these are called, of which the last, the ``keywords``, are taken by name alone. ``levels`` are the
    rows of ``levels.json`` (empty if there is no such file), ``classes`` the names of the head's rows where the parents
    had label maps."""

    folder: Path
    program: ExportedProgram
    module: fx.GraphModule
    example: tuple[Tensor, ...]
    levels: tuple[dict[str, Any], ...]
    classes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()


def load_result(folder: str | Path) -> LoadedResult:
    """Read an output folder: the program of ``model.pt2`` with the weights of ``model.safetensors``.

    Raises ``SourceError`` if the folder is no result, ``WeightsError`` if the two files do not belong together.
    """
    folder = Path(folder)
    program_file, weights_file, levels_file = (folder / n for n in ("model.pt2", "model.safetensors", "levels.json"))
    for needed in (program_file, weights_file):
        if not needed.is_file():
            raise SourceError(f"{folder} is not a result of fxfuse: it has no {needed.name}")
    try:
        with quiet():
            program = torch.export.load(program_file)
    except Exception as error:  # torch documents none here, and a damaged archive raises nearly anything
        raise SourceError(f"cannot load {program_file}: {first_line(error)}") from error
    classes = _adopt(program, weights_file)
    example = tuple(x for x in tree_leaves(program.example_inputs or ()) if isinstance(x, Tensor))
    if not example:
        raise SourceError(f"{program_file} holds no example inputs; write it with fxfuse")
    with quiet():
        module = program.module()
    names, keywords = argument_names(program), keywords_of(program)
    return LoadedResult(folder, program, module, example, _levels(levels_file), classes, names, keywords)


def _adopt(program: ExportedProgram, weights_file: Path) -> tuple[str, ...]:
    """Copy the weights of a safetensors file into a program; the names of its classes, if it has any."""
    try:
        weights = load_file(weights_file)
        with safe_open(weights_file, framework="pt") as file:
            classes = json.loads((file.metadata() or {}).get(CLASSES_KEY, "[]"))
    except (OSError, SafetensorError, ValueError) as error:
        raise WeightsError(f"cannot load {weights_file}: {first_line(error)}") from error
    state = program.state_dict
    missing, unknown = state.keys() - weights.keys(), weights.keys() - state.keys()
    if missing or unknown:
        name = min(missing or unknown)
        problem = "misses" if missing else "has the unexpected entry"
        raise WeightsError(f"{weights_file} {problem} '{name}'; it does not belong to the model.pt2 beside it")
    with torch.no_grad():
        for name, value in weights.items():
            if state[name].shape != value.shape:
                shapes = f"{tuple(value.shape)} instead of {tuple(state[name].shape)}"
                raise WeightsError(f"'{name}' in {weights_file} has shape {shapes}, as in the model.pt2 beside it")
            state[name].copy_(value)
    return tuple(map(str, classes))


def _levels(file: Path) -> tuple[dict[str, Any], ...]:
    if not file.is_file():
        return ()
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        return tuple(dict(row) for row in data["levels"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"cannot read {file}: {first_line(error)}") from error
