"""Options of the command line as entries of a recipe, written as in a recipe file and checked by its records."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxfuse.errors import RecipeError

if TYPE_CHECKING:
    from fxfuse.recipe import Recipe

NO_RECIPES = (".py", ".pt2", ".pt", ".pth", ".safetensors", ".npz", ".npy", ".onnx")
"""What may be given by mistake where a recipe is expected."""


def recipe_of(path: str | None, options: dict[str, Any]) -> "Recipe":
    """The recipe in a file, or an empty one, with the options that were given put into it.

    A data source alone is read and preprocessed as the recipe says of its own data (that of the same entry, or else the
    other's); a mapping takes the whole entry's place.
    """
    from fxfuse.recipe import DataSpec, Recipe, load_recipe, read_alike, resolve, split_source

    if path is not None and (split_source(path)[2] or Path(path).suffix in NO_RECIPES):
        raise RecipeError(
            f"{path} is no recipe, which is a YAML file. A parent is named by --parent SOURCE, its weights by "
            "--weights FILE, data by --calibration."
        )
    entries = {} if path is None else load_recipe(path).model_dump(exclude_defaults=True)
    if path is None and options["parents"] is None:
        raise RecipeError("There is nothing to fuse: name a recipe, or parents by --parent and --weights.")
    nested = {key: options.get(key) or {} for key in ("fit", "finetune", "options")}
    stated: dict[str, Any] = {key: entries[key] for key in ("calibration", "evaluation") if key in entries}
    entries.update({key: value for key, value in options.items() if value is not None and key not in nested})
    for key, other in (("calibration", "evaluation"), ("evaluation", "calibration")):
        own = stated.get(key) or stated.get(other)
        if own is not None and isinstance(options.get(key), str):
            entries[key] = read_alike(DataSpec(**own), options[key])
    for key, part in nested.items():
        given = {name: value for name, value in part.items() if value is not None}
        if given:
            entries[key] = {**entries.get(key, {}), **given}
    return resolve(Recipe(**entries), Path.cwd())


def parents_of(
    sources: list[str], weights: list[str], shares: list[float], labels: Sequence[str] = ()
) -> list[dict[str, Any]] | None:
    """One entry per parent; weight files go to the parents in their order."""
    if not sources:
        if weights or shares or labels:
            raise RecipeError("--weights, --share and --labels belong to --parent: name the code of the parents too.")
        return None
    parents = [parent_of(source) for source in sources]
    if len(parents) == 1 and len(weights) > 1 and "weights" not in parents[0]:
        parents = [dict(parents[0]) for _ in weights]
    if weights:
        if any("weights" in entry for entry in parents):
            raise RecipeError("Weights must be given by --weights or by --parent SOURCE=FILE, not by both.")
        if len(weights) != len(parents):
            raise RecipeError(f"There must be one --weights per --parent. Got {len(weights)} for {len(parents)}.")
        parents = [{**entry, "weights": file} for entry, file in zip(parents, weights, strict=True)]
    if shares:
        if len(shares) != len(parents):
            raise RecipeError(f"There must be one --share per --parent. Got {len(shares)} for {len(parents)}.")
        parents = [{**entry, "share": share} for entry, share in zip(parents, shares, strict=True)]
    if labels:
        if len(labels) != len(parents):
            raise RecipeError(f"There must be one --labels per --parent. Got {len(labels)} for {len(parents)}.")
        parents = [{**entry, "labels": _classes(own)} for entry, own in zip(parents, labels, strict=True)]
    return parents


def _classes(text: str) -> list[str | int]:
    """``cat,dog`` or ``0,1,5-9``: names, or numbers and ranges of them."""
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"\d+(-\d+)?", part) for part in parts):
        return list(parts)
    ends = [part.partition("-") for part in parts]
    if back := [f"{first}-{last}" for first, _, last in ends if last and int(last) < int(first)]:
        raise RecipeError(f"A range of --labels must go upwards. Got {back[0]}; write other orders out: 3,2,1.")
    return [number for first, _, last in ends for number in range(int(first), int(last or first) + 1)]


def parent_of(text: str) -> dict[str, Any]:
    """``net.py:build(width=3)=a.pt`` as source and weights; an equals sign in the call belongs to the call."""
    found = re.fullmatch(r"(.+?(?:\(.*\))?)=([^()]+)", text, re.DOTALL)
    return {"source": found[1], "weights": found[2]} if found else {"source": text}


def options_of(texts: list[str]) -> dict[str, Any]:
    """``metric=cosine`` as an entry, its value read as YAML."""
    import yaml

    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise RecipeError(f"An option of a method is written KEY=VALUE, metric=cosine. Got {text!r}.")
        try:
            found[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise RecipeError(f"The value of the option {key} cannot be read: {value!r}.") from None
    return found


def data_of(text: str | None) -> Any:
    """A source, or a mapping in YAML."""
    if text is None or not text.lstrip().startswith("{"):
        return text
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        example = "'{source: images, limit: 400}'"
        raise RecipeError(f"Data must be a source or a mapping in YAML, {example}. Got {text!r}.") from None


def target_of(text: str | None) -> Any:
    """A factor on the widths, or a source."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return text


def budget_of(text: str | None) -> Any:
    """A factor, or a text as it stands."""
    return target_of(text)


def granularity_of(text: str) -> Any:
    """``block``, ``layer``, a number, or a list of names."""
    if text in ("block", "layer"):
        return text
    return int(text) if re.fullmatch(r"-?\d+", text) else [name for name in text.split(",") if name]


def methods_of(text: str) -> list[str]:
    """``hungarian,kmeans`` as names, each once; all methods for no text. Raises ``MethodError`` for an unknown one."""
    from fxfuse.presets import METHODS, find_method

    names = [name.strip() for name in text.split(",") if name.strip()] or list(METHODS)
    for name in names:
        find_method(name)
    return list(dict.fromkeys(names))


def seeds_of(text: str) -> list[int]:
    """``0,1,2`` as numbers, each once."""
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,18}", part) for part in parts):
        raise RecipeError(f"--seeds must be numbers with commas between them: 0,1,2. Got {text!r}.")
    return list(dict.fromkeys(int(part) for part in parts))
