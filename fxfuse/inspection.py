"""One network looked at without data: loaded, traced with stated or guessed inputs, cut into levels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fxfuse.inputs import Example, example_of, guess
from fxfuse.pipeline import analyse
from fxfuse.recipe import ParentSpec, Recipe, parent_name
from fxfuse.sources import load_parent
from fxfuse.types import Analysis


@dataclass(frozen=True, slots=True)
class Inspection:
    """A network's analysis; ``guessed`` is the input that was tried where none was stated."""

    analysis: Analysis
    guessed: str | None


def inspect(spec: ParentSpec, inputs: Sequence[str] = (), **settings: Any) -> Inspection:
    """Load and analyse a network. ``inputs`` are written as in :mod:`fxfuse.inputs`, ``settings`` those entries of a
    recipe that say how graphs are made. Raises a ``FuseError`` for anything that cannot be."""
    recipe = Recipe(parents=(spec,), **settings)
    parent, name = load_parent(spec), parent_name(spec)
    guessed: str | None = None
    if inputs:
        example: Example = example_of(inputs)
    else:
        tensor, guessed = guess(parent.module, f"parent {name!r}")
        example = (tensor,)
    analysis = analyse(
        parent.module,
        example,
        name=name,
        granularity=recipe.granularity,
        leaves=recipe.leaves,
        submodule=recipe.submodule,
        front_end=recipe.front_end,
    )
    return Inspection(analysis, guessed)
