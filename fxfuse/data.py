"""Calibration and evaluation data from wherever it lies, as ``fxfuse.samples.Samples``.

How inputs and labels are told apart is described in ``fxfuse.items``, what is kept in memory in ``fxfuse.holders``.

Inputs that came under names (a mapping's keys) keep them: ``input_names(samples)`` gives them in the order of a
batch's inputs, so that each can be bound to the argument of that name of the model's ``forward``
(:mod:`fxfuse.naming`). Items and batches may have their keys in any order; that of the first holds for all.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeGuard

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils import data as torch_data

from fxfuse.arrays import SUFFIXES, read_arrays
from fxfuse.errors import DataError, FuseError
from fxfuse.factories import Reference, beside
from fxfuse.folders import image_folder, torchvision_dataset
from fxfuse.holders import ArraySamples, ItemSamples, told
from fxfuse.items import Parts, Picker
from fxfuse.preprocess import Transform, as_tensor
from fxfuse.recipe import DataSpec, Limit, Preprocessing, split_source
from fxfuse.samples import Ordered, Relabelled, Samples, Subset, TensorSamples, Unlabelled, batches


@dataclass(frozen=True, slots=True)
class _Reading:
    """How an object is to be read: what ``samples_from`` was asked for."""

    description: str
    preprocessing: Preprocessing
    inputs: tuple[int | str, ...] | None = None
    labels: bool | int | str = True
    limit: Limit | None = None
    batched: bool | None = None
    narrow: bool = False

    def picker(self, single: bool) -> Picker:
        """Labels that only serve to choose a part are read here and dropped after the choice."""
        balanced = self.labels is False and self.limit is not None and self.limit.how in (None, "balanced")
        return Picker(self.inputs, True if balanced else self.labels, single)


def samples_from(
    data: object,
    *,
    preprocessing: Preprocessing | None = None,
    inputs: tuple[int | str, ...] | None = None,
    labels: bool | int | str = True,
    limit: Limit | int | None = None,
    batched: bool | None = None,
) -> Samples:
    """Samples from a spec, a path, or nearly any Python object that holds data.

    * ``DataSpec``: see there; it brings its own settings. A string or path stands for its ``source``.
    * ``Samples``: taken as they are, but for ``limit`` and ``labels=False``.
    * A tensor or array (first dimension the sample), a tuple or mapping of them, a ``TensorDataset``.
    * A torch ``Dataset``, or anything with ``__len__`` and ``__getitem__`` that is no list: single samples.
    * A ``DataLoader`` or any other iterable: batches, which are read once and kept. ``batched=False`` says that an
      iterable gives single samples; that is also assumed where the first item is an image or has a single label.
      An endless iterable needs a ``limit`` of the first samples.

    numpy's float64 becomes float32; a torch tensor keeps its floating type. Raises ``DataError`` for data that cannot
    be read.
    """
    chosen = Limit(count=limit) if isinstance(limit, int) else limit
    settings = preprocessing or Preprocessing()
    if isinstance(data, str | Path):
        path = str(data)
        data = DataSpec(
            source=path, preprocessing=settings, inputs=inputs, labels=labels, limit=chosen, batched=batched
        )
    if isinstance(data, DataSpec):
        data, reading = _open(data)
    else:
        description = f"{type(data).__name__} given in Python"
        reading = _Reading(description, settings, inputs, labels, chosen, batched)
    samples = data if _is_samples(data) else _read(data, reading)
    if reading.limit is not None:
        samples = Subset(samples, _chosen(samples, reading.limit))
    return Unlabelled(samples) if reading.labels is False and samples.labelled else samples


def input_names(samples: Samples) -> tuple[str, ...] | None:
    """The names of the inputs in a batch's order, or ``None`` where they are to be bound by position."""
    names: tuple[str, ...] | None = _attribute(samples, "names")
    return names


def few_inputs(samples: Samples, count: int = 3) -> tuple[Tensor, ...] | dict[str, Tensor]:
    """The inputs of the first ``count`` samples (fewer where there are fewer), by name where the data has names."""
    inputs, _ = samples.take(torch.arange(min(count, len(samples))))
    names = input_names(samples)
    return inputs if names is None else dict(zip(names, inputs, strict=True))


def items_of(samples: Samples) -> object:
    """The data set that the samples are items of, ``None`` where they are rows of arrays."""
    return _attribute(samples, "items")


def class_names(samples: Samples) -> tuple[str, ...] | None:
    """The names of the classes in the labels' order, where the data has them."""
    names: Sequence[str] | None = _attribute(samples, "classes")
    return None if names is None else tuple(names)


# ---------------------------------------------------------------------------------------------------------- reading


def _open(spec: DataSpec) -> tuple[object, _Reading]:
    """The object behind a spec, and how it is to be read."""
    place, _, factory = split_source(spec.source)
    path = Path(spec.source).expanduser()
    reading = _Reading(path.name, spec.preprocessing, spec.inputs, spec.labels, spec.limit, spec.batched)
    if factory and place == "torchvision":
        split = f" {spec.split}" if spec.split else ""
        return torchvision_dataset(factory, spec), replace(reading, description=f"torchvision {factory}{split}")
    if factory:
        made = Reference(spec.source, f"data {spec.source!r}", DataError).make(spec.args)
        return made.value, replace(reading, description=spec.source)
    if path.suffix in SUFFIXES:
        arrays = read_arrays(path)
        if isinstance(spec.labels, str) and spec.labels.endswith(".npy"):
            arrays["labels"] = read_arrays(Path(spec.labels).expanduser())["inputs"]
            reading = replace(reading, labels="labels")
        elif arrays and all(re.fullmatch(r"arr_\d+", key) for key in arrays) and not _by_key(spec):
            return tuple(arrays[f"arr_{i}"] for i in range(len(arrays))), replace(reading, narrow=True)
        # Files hold what numpy or an exporter wrote by default; float32 is what models take.
        return arrays, replace(reading, narrow=True)
    if path.is_dir():
        return image_folder(path), reading
    if path.exists():
        kinds = ", ".join(SUFFIXES)
        raise DataError(f"{path} is no data that can be read; give an image folder, {kinds}, or 'module:factory'.")
    raise DataError(f"There is no data at {path}{beside(path)}")


def _by_key(spec: DataSpec) -> bool:
    """Whether a spec names parts by keys."""
    return any(isinstance(key, str) for key in (*(spec.inputs or ()), spec.labels))


def _read(data: Any, reading: _Reading) -> ArraySamples | ItemSamples:
    """Samples of a Python object."""
    if isinstance(data, torch_data.TensorDataset):
        data = data.tensors
    if isinstance(data, Tensor | np.ndarray | tuple | Mapping):
        with told(reading.description):
            return _arrays(reading.picker(single=False)(data), reading)
    is_items = isinstance(data, torch_data.Dataset) and not isinstance(data, torch_data.IterableDataset)
    like_items = hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, list)
    if (is_items or like_items) and not reading.batched:
        return ItemSamples(data, reading.picker(single=True), Transform(reading.preprocessing), reading.description)
    if not isinstance(data, Iterable):
        raise DataError(f"{reading.description} is no data: give a tensor, a data set or an iterable of batches.")
    if isinstance(data, torch_data.IterableDataset) and reading.batched is None:
        reading = replace(reading, batched=False)
    return _collect(iter(data), reading)


def _collect(items: Iterator[Any], reading: _Reading) -> ArraySamples | ItemSamples:
    """Read an iterable once: all of it, or until it has given the first samples that are wanted."""
    one, many = reading.picker(single=True), reading.picker(single=False)
    enough = reading.limit.count if reading.limit is not None and reading.limit.how in (None, "first") else None
    batched, count = reading.batched, 0
    kept: list[Any] = []
    with _running(reading.description):
        for item in items:
            if batched is None:
                batched = not _is_single(item, one)
            kept.append(_like(kept, many(item)) if batched else item)
            count += len(kept[-1].inputs[0]) if batched else 1
            if enough is not None and count >= enough:
                break
    if not kept:
        raise DataError(f"{reading.description} is empty.")
    if not batched:
        return ItemSamples(kept, one, Transform(reading.preprocessing), reading.description)
    with told(reading.description):
        columns = zip(*(parts.inputs for parts in kept), strict=True)
        inputs = tuple(_cat(column) for column in columns)
        label = None if kept[0].label is None else _cat(parts.label for parts in kept)
        narrow = reading.narrow or _from_numpy(kept[0])
        return _arrays(Parts(inputs, label, kept[0].names), replace(reading, narrow=narrow))


def _like(before: Sequence[Parts], parts: Parts) -> Parts:
    """A batch's parts, with the inputs in the order of the first batch's."""
    return parts.named(before[0].names) if before else parts


def _arrays(parts: Parts, reading: _Reading) -> ArraySamples:
    narrow = reading.narrow or _from_numpy(parts)
    return ArraySamples(parts, Transform(reading.preprocessing, narrow), reading.description)


@contextlib.contextmanager
def _running(description: str) -> Iterator[None]:
    """Inside runs the user's iterable, which may raise anything; it is told as an error of the data."""
    try:
        yield
    except FuseError as error:
        raise DataError(f"{description}: {error}") from None
    except Exception as error:  # the user's code may raise anything
        text = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{description}: {text}") from error


def _is_single(item: Any, one: Picker) -> bool:
    """Whether an item of an iterable is a sample: it holds an image, or one label."""
    # A label that is not wanted still tells.
    parts = (replace(one, labels=True) if one.labels is False else one)(item)
    has_one_label = parts.label is not None and np.ndim(parts.label) == 0
    return has_one_label or any(isinstance(x, Image.Image) for x in parts.inputs)


def _is_samples(data: object) -> TypeGuard[Samples]:
    return all(hasattr(data, name) for name in ("take", "labelled", "description", "__len__"))


def _from_numpy(parts: Parts) -> bool:
    return not any(isinstance(x, Tensor) for x in parts.inputs)


def _cat(column: Iterable[Any]) -> Tensor:
    return torch.cat([as_tensor(x) for x in column])


def _attribute(samples: object, name: str) -> Any:
    """An attribute of samples, or of the samples that they are a part of."""
    while not hasattr(samples, name) and hasattr(samples, "samples"):
        samples = samples.samples
    return getattr(samples, name, None)


# --------------------------------------------------------------------------------------------------------- choosing


def _chosen(samples: Samples, limit: Limit) -> Tensor:
    """The indices of the part that is wanted; all of them if there are no more."""
    total, count = len(samples), min(limit.count, len(samples))
    how = limit.how or _best_choice(samples, count)
    if how == "first":
        return torch.arange(count)
    generator = torch.Generator().manual_seed(limit.seed)
    order = torch.randperm(total, generator=generator)
    if how == "random":
        return order[:count]
    labels = _all_labels(samples)[order]
    # The k-th sample of each class has rank k; the lowest ranks give classes of equal size as far as they reach.
    rank = torch.empty_like(order)
    for label in torch.unique(labels):
        where = (labels == label).nonzero().squeeze(1)
        rank[where] = torch.arange(len(where))
    balanced = order[rank.argsort(stable=True)[:count]]
    return balanced[torch.randperm(count, generator=generator)]


def _best_choice(samples: Samples, count: int) -> Literal["first", "balanced"]:
    """The first samples, unless they are known to lack a class for which there is room: data often lie class by
    class."""
    labels = labels_at_hand(samples)
    if labels is None or labels.ndim != 1:
        return "first"
    shown, all_classes = (len(torch.unique(some)) for some in (labels[:count], labels))
    return "first" if shown >= min(count, all_classes) else "balanced"


def labels_at_hand(samples: Samples) -> Tensor | None:
    """The labels of all samples where they are known without reading the inputs, else ``None``."""
    if isinstance(samples, Unlabelled):
        return None
    if isinstance(samples, Ordered):
        return labels_at_hand(samples.samples)
    if isinstance(samples, Subset):
        labels = labels_at_hand(samples.samples)
        return None if labels is None else labels[samples.indices]
    if isinstance(samples, Relabelled):
        labels = labels_at_hand(samples.samples)
        return None if labels is None else samples.renumbered(labels)
    if isinstance(samples, ItemSamples):
        return samples.labels_at_hand()
    return samples.labels if isinstance(samples, ArraySamples | TensorSamples) else None


def _all_labels(samples: Samples) -> Tensor:
    if isinstance(samples, ArraySamples | ItemSamples):
        labels = samples.all_labels()
    elif samples.labelled:
        labels = torch.cat([y for _, y in batches(samples, 256) if y is not None])
    else:
        labels = None
    if labels is None or labels.ndim != 1:
        raise DataError(f"A balanced part of {samples.description} needs one label per sample, and it has none.")
    return labels
