"""One network looked at by itself: loaded, traced with inputs that are stated, taken from data or guessed, and cut into
levels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fxfuse.data import few_inputs, samples_from
from fxfuse.errors import DataError, RecipeError
from fxfuse.inputs import Example, as_tokens, example_of, guess
from fxfuse.pipeline import analyse
from fxfuse.recipe import DataSpec, ParentSpec, Recipe, parent_name
from fxfuse.sources import load_parent
from fxfuse.types import Analysis

HOW = "say what it takes by --input, for example --input 1,3,224,224 or --input input_ids=1,16:int64, or give --data"


@dataclass(frozen=True, slots=True)
class Inspection:
    """A network's analysis; ``guessed`` is the input that was tried where none was stated."""

    analysis: Analysis
    guessed: str | None


def inspect(
    spec: ParentSpec, inputs: Sequence[str] = (), data: DataSpec | str | None = None, **settings: Any
) -> Inspection:
    """Load and analyse a network.

    ``inputs`` are written as in :mod:`fxfuse.inputs`; in their place ``data`` may name samples as a recipe does, of
    which the first few are taken. ``settings`` are those entries of a recipe that say how graphs are made. Raises a
    ``FuseError`` for anything that cannot be.
    """
    if inputs and data is not None:
        raise RecipeError("The inputs must be given by --input or by --data, not by both.")
    recipe = Recipe(parents=(spec,), **{**settings, "calibration": data})
    parent, name = load_parent(spec), parent_name(spec)
    guessed: str | None = None
    example: Example
    if recipe.calibration is not None:
        samples = samples_from(recipe.calibration)
        if not len(samples):
            raise DataError(f"The data ({samples.description}) are empty.")
        example = few_inputs(samples)
    elif inputs:
        example = example_of(inputs)
    else:
        tensor, guessed = guess(parent.module, f"parent {name!r}", HOW)
        example = (tensor,)
    try:
        analysis = analyse(
            parent.module,
            example,
            name=name,
            granularity=recipe.granularity,
            leaves=recipe.leaves,
            submodule=recipe.submodule,
            front_end=recipe.front_end,
        )
    except DataError as error:
        tokens = as_tokens(parent.module, inputs, name)
        if tokens is None:
            raise
        stated = " ".join(f"--input {text}" for text in tokens)
        raise DataError(
            f"{name} takes whole numbers, such as tokens, where floats were stated; say {stated}"
        ) from error
    return Inspection(analysis, guessed)
