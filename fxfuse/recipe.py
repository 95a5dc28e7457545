"""The recipe: all that a run depends on, one record per stage, and its YAML form.

A recipe is complete: together with the files that it names it reproduces its result. Records are checked when they
are built and refuse keys that they do not know; a mistake is a ``RecipeError`` that names the entry by its path.
Paths in a recipe file are relative to the folder that holds the file.
"""

import os
import re
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, model_validator

from fxfuse.errors import RecipeError
from fxfuse.fields import (
    Above0,
    Augment,
    BudgetText,
    ClassName,
    Cut,
    Device,
    Extent,
    Keys,
    Labels,
    Number,
    Numbers,
    Positive,
    Share,
    Text,
    listed,
    short,
)
from fxfuse.records import Record, shown

Head = Literal["probabilities", "logits", "labels"]
StatisticsChoice = Literal["activations", "weights"]
FrontEndChoice = Literal["auto", "fx", "export"]
Start = Literal["auto", "fused"]
Repair = Literal["norms", "rescale"]
Towards = Literal["ensemble", "labels"]
Schedule = Literal["constant", "linear", "cosine"]
Choice = Literal["first", "balanced", "random"]
Channels = Literal["grayscale", "rgb"]

# --------------------------------------------------------------------------------------------------------- records


class ParentSpec(Record):
    """A trained network: where its code is, where its weights are, and its share in the fusion.

    ``source`` is ``package.module:factory``, ``path/to/file.py:factory``, ``torchvision:resnet18`` or a
    ``torch.export`` program (``.pt2``); a factory may be called with literals, ``net.py:build(width=32)``, or with
    ``args``. ``weights`` is a ``.safetensors`` file or one that ``torch.load(weights_only=True)`` reads; ``None``
    keeps what the factory or the program holds. ``share`` is relative to the other parents' shares; parents with
    share 0 are aligned but do not count. ``name`` is for messages and reports. ``labels`` says which class each of its
    outputs is, by names or by numbers; the fused head has the union of all parents'.
    """

    source: Text
    args: dict[str, Any] = Field(default_factory=dict)
    weights: Text | None = None
    share: Share = 1.0
    name: Text | None = None
    labels: tuple[ClassName, ...] | None = None


class TargetSpec(Record):
    """The architecture of the fused network: a ``source`` as for a parent, or ``width`` times the first parent's."""

    source: Text | None = None
    args: dict[str, Any] = Field(default_factory=dict)
    width: Above0 | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.source is None) == (self.width is None):
            raise ValueError("must have either `source` or `width`, and not both.")
        return self


class Preprocessing(Record):
    """What is done to each input, in this order; everything that is not stated is left as it is.

    ``permute`` reorders a sample's dimensions (``[2, 0, 1]`` makes channels first); decoded images are channels
    first already. ``channels`` converts colour; ``resize`` is the length of the shorter edge or ``[height, width]``
    (bilinear, antialiased); ``center_crop`` an edge or ``[height, width]``. ``to_float``: ``None`` turns 8-bit
    integers and images into float32 and leaves other types, ``True`` turns everything into float32, ``False``
    nothing. ``scale`` multiplies; ``None`` is 1/255 for 8-bit integers that become floats and 1 otherwise. Then
    ``(x - mean) / std``, one number or one per channel (dimension 1 of a batch). ``flatten`` makes one dimension.

    With several inputs it applies to those that are 8-bit integers or floating; indices and masks pass untouched.
    """

    permute: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    channels: Channels | None = None
    resize: Extent | None = None
    center_crop: Extent | None = None
    to_float: bool | None = None
    scale: Number | None = None
    mean: Numbers | None = None
    std: Annotated[tuple[Above0, ...], BeforeValidator(listed), Field(min_length=1)] | None = None
    flatten: bool = False

    @model_validator(mode="after")
    def _needs_floats(self) -> Self:
        if self.to_float is False and (self.scale is not None or self.mean is not None or self.std is not None):
            raise ValueError("cannot have `scale`, `mean` or `std` together with `to_float: false`.")
        return self


class Limit(Record):
    """A part of the samples: the ``first``, a ``random`` one, or a random one ``balanced`` over the labels.

    By default the first, but balanced where the labels are at hand and the first lack a class: files of an image
    folder come class by class.
    """

    count: Positive
    how: Choice | None = None
    seed: int = 0


class DataSpec(Record):
    """Calibration or evaluation data.

    ``source`` is an image folder, a ``.npy``, ``.npz`` or ``.safetensors`` file, ``torchvision:MNIST`` (with ``root``
    and ``split``), or ``module:factory`` / ``file.py:factory`` that gives data. ``inputs`` are the keys (or positions
    in a tuple) of the model's inputs; ``labels`` is the key or position of the labels, or a ``.npy`` file, ``True`` to
    find them, ``False`` to do without. ``batched`` says whether an iterable yields batches or single samples.
    """

    source: Text
    args: dict[str, Any] = Field(default_factory=dict)
    root: Text | None = None
    split: Text | None = None
    inputs: Keys | None = None
    labels: Labels = True
    batched: bool | None = None
    preprocessing: Preprocessing = Preprocessing()
    limit: Annotated[Limit, short("count", int)] | None = None


def read_alike(spec: DataSpec, source: str) -> DataSpec:
    """Another source, read and preprocessed as ``spec`` says; which part of it is taken (``root``, ``split``,
    ``limit``) and labels in a file of their own were the first source's."""
    kept = {key: getattr(spec, key) for key in ("inputs", "preprocessing", "batched")}
    if not isinstance(spec.labels, bool) and not str(spec.labels).endswith(".npy"):
        kept["labels"] = spec.labels
    return DataSpec(source=source, **kept)


class FitSettings(Record):
    """How levels are fitted; ``None`` leaves the choice to the method."""

    steps: Annotated[int, Field(ge=0)] | None = None
    joint_steps: Annotated[int, Field(ge=0)] | None = None
    lr: Above0 | None = None
    batch_size: Positive | None = None
    max_seconds: Above0 | None = None
    start: Start = "auto"
    repair: Repair = "norms"
    augment: Augment = "auto"


class FinetuneSettings(Record):
    """Training end to end after the fit, towards the parents' ensemble or labels; no epochs, no fine-tuning."""

    epochs: Annotated[int, Field(ge=0)] = 0
    towards: Towards = "ensemble"
    optimizer: Text = "SGD"
    lr: Above0 = 0.01
    options: dict[str, Any] = Field(default_factory=lambda: {"momentum": 0.9})
    schedule: Schedule = "cosine"
    batch_size: Positive = 128
    patience: Positive | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_another(cls, given: Any) -> Any:
        """The options by default are SGD's: another optimizer begins without."""
        if isinstance(given, Mapping) and given.get("optimizer", "SGD") != "SGD" and "options" not in given:
            return {**given, "options": {}}
        return given


class Recipe(Record):
    """A whole run. A parent, a target or a data set may be written as its source alone, a target as its width."""

    parents: Annotated[tuple[Annotated[ParentSpec, short("source", str)], ...], Field(min_length=1)]
    target: Annotated[TargetSpec, short("source", str), short("width", int, float)] | None = None
    calibration: Annotated[DataSpec, short("source", str)] | None = None
    evaluation: Annotated[DataSpec, short("source", str)] | None = None
    method: Text = "hungarian-gradient"
    importance: Text | None = None
    statistics: StatisticsChoice | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    base: Annotated[ParentSpec, short("source", str)] | None = None
    granularity: Cut = "block"
    fit: FitSettings = FitSettings()
    finetune: Annotated[FinetuneSettings, short("epochs", int)] = FinetuneSettings()
    head: Head = "probabilities"
    budget: BudgetText = None
    router: Text | None = None
    device: Device = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    output: Text | None = None
    onnx: bool = False
    leaves: tuple[Text, ...] = ()
    submodule: Text | None = None
    front_end: FrontEndChoice = "auto"

    @model_validator(mode="after")
    def _parents_agree(self) -> Self:
        if not any(parent.share > 0 for parent in self.parents):
            raise ValueError("`parents` must have a share above 0 at least once.")
        names = [parent.name for parent in self.parents if parent.name is not None]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"`parents` must have different names. Got {name!r} twice.")
        return self

    def labels(self) -> tuple[tuple[str | int, ...] | None, ...] | None:
        """The parents' label maps, ``None`` where no parent has one."""
        maps = tuple(parent.labels for parent in self.parents)
        return None if all(own is None for own in maps) else maps

    def shares(self) -> tuple[float, ...]:
        """The parents' shares, scaled to sum to 1."""
        total = sum(parent.share for parent in self.parents)
        return tuple(parent.share / total for parent in self.parents)

    def names(self) -> tuple[str, ...]:
        """A name for each parent: its own, or that of its weights or its source; numbered where two would be alike."""
        wanted = [parent_name(parent) for parent in self.parents]
        taken = {parent.name for parent in self.parents}
        names: list[str] = []
        for parent, name in zip(self.parents, wanted, strict=True):
            alike = parent.name is None and wanted.count(name) > 1
            numbered = (f"{name}-{i}" for i in range(len(wanted) ** 2 + 1))
            names.append(next(n for n in numbered if n not in taken and n not in names) if alike else name)
        return tuple(names)


def parent_name(parent: ParentSpec) -> str:
    """The name that a parent goes by when it stands alone."""
    if parent.name is not None:
        return parent.name
    if parent.weights is not None:
        return Path(parent.weights).stem
    place, _, factory = split_source(parent.source)
    return factory or Path(place).stem


def split_source(source: str) -> tuple[str, str, str]:
    """``place:factory(call)`` in its three parts; the last two are empty for a file.

    >>> split_source("zoo/net.py:build(width=32)")
    ('zoo/net.py', '(width=32)', 'build')
    """
    # The first colon that a name follows: a drive's is followed by a slash, one in the arguments comes later.
    found = re.fullmatch(r"(.+?):([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(\(.*\))?", source, re.DOTALL)
    return (found[1], found[3] or "", found[2]) if found else (source, "", "")


# ------------------------------------------------------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """YAML without the silent loss of all but the last of two equal keys."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    seen: set[Hashable] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise yaml.MarkedYAMLError(problem=f"the key {key!r} occurs twice", problem_mark=key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_recipe(path: str | Path) -> Recipe:
    """The recipe in a YAML file, its relative paths resolved against the file's folder.

    Raises ``RecipeError`` if the file cannot be read, is not YAML or is not a valid recipe.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        own = path / "recipe.yaml"
        raise RecipeError(f"{path} is a folder; name the recipe in it{f', {own}' if own.is_file() else ''}.")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"There is no recipe at {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe {path} cannot be read: {error}.") from None
    try:
        return resolve(parse_recipe(text), path.resolve().parent)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None


def parse_recipe(text: str) -> Recipe:
    """The recipe in a YAML text, its paths as they are written."""
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise RecipeError(f"not valid YAML: {where}{error.problem or error.context}.") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(data, dict):
        raise RecipeError(f"A recipe must be a mapping with the key `parents`. Got {shown(data)}.")
    return Recipe(**{str(key): value for key, value in data.items()})


def dump_recipe(recipe: Recipe, relative_to: Path | None = None) -> str:
    """The recipe as YAML, without entries that keep their default; paths relative to a folder if one is given."""
    if relative_to is not None:
        base = relative_to.resolve()
        recipe = map_paths(recipe, lambda path: os.path.relpath(path, base) if os.path.isabs(path) else path)
    data = recipe.model_dump(mode="json", exclude_defaults=True)
    # What decides the result most is stated even where it is the default.
    data = {"parents": data.pop("parents"), "method": recipe.method, "seed": recipe.seed, **data}
    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)
    return text


def identity(recipe: Recipe) -> dict[str, Any]:
    """All entries on which the fused weights depend, as JSON values: what a resumed run must agree on."""
    return recipe.model_dump(mode="json", exclude={"output", "onnx", "evaluation"})


# ------------------------------------------------------------------------------------------------------------ paths


def resolve(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with every relative path taken from ``folder``, and ``~`` as the user's home."""
    return map_paths(recipe, lambda path: str(Path(os.path.abspath(folder / Path(path).expanduser()))))


def map_paths(recipe: Recipe, change: Callable[[str], str]) -> Recipe:
    """The recipe with every path in it changed; module names and torchvision names are no paths."""

    def source(text: str, file_without_factory: bool) -> str:
        place, call, factory = split_source(text)
        if factory:
            return f"{change(place)}:{factory}{call}" if place.endswith(".py") else text
        return change(text) if file_without_factory else text

    def parent(spec: ParentSpec) -> ParentSpec:
        is_file = spec.source.endswith((".pt2", ".py"))
        weights = spec.weights and change(spec.weights)
        return spec.model_copy(update={"source": source(spec.source, is_file), "weights": weights})

    def data(spec: DataSpec | None) -> DataSpec | None:
        if spec is None:
            return None
        labels = change(spec.labels) if isinstance(spec.labels, str) and spec.labels.endswith(".npy") else spec.labels
        update = {"source": source(spec.source, True), "root": spec.root and change(spec.root), "labels": labels}
        return spec.model_copy(update=update)

    target = recipe.target
    if target is not None and target.source is not None:
        target_source = source(target.source, target.source.endswith((".pt2", ".py")))
        target = target.model_copy(update={"source": target_source})
    changes: Mapping[str, Any] = {
        "parents": tuple(parent(spec) for spec in recipe.parents),
        "target": target,
        "base": recipe.base and parent(recipe.base),
        "calibration": data(recipe.calibration),
        "evaluation": data(recipe.evaluation),
        "output": recipe.output and change(recipe.output),
    }
    return recipe.model_copy(update=changes)
