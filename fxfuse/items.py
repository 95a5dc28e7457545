"""What is in one item of data: which parts are the model's inputs, which the labels.

An item is a sample, a batch, or a whole data set; a bare value, a tuple or a mapping. Where the user does not say,
these rules decide, the same ones everywhere:

* A bare value is the input.
* Of a mapping, the label is the value under ``labels``, ``label``, ``y``, ``targets`` or ``target``. The input is the
  value under ``inputs``, ``input``, ``x``, ``images``, ``image`` or ``data``; where none of these occurs, or one beside
  an array of more than a number per sample (a mask, say), every array is an input under its own name, which is kept so
  that it can be bound to the argument of that name.
* Of a tuple, the last part is the label if it is one integer per sample; all other arrays are inputs in their order.
  ``((x1, x2), y)`` and ``({"a": x1, "b": x2}, y)`` are understood.

Labels that are not wanted are dropped, never mistaken for inputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fxfuse.errors import DataError, nearest

LABEL_KEYS = ("labels", "label", "y", "targets", "target")
INPUT_KEYS = ("inputs", "input", "x", "images", "image", "data")


@dataclass(frozen=True, slots=True)
class Parts:
    """The inputs and the label of an item; ``names`` of the inputs where they have any that matter."""

    inputs: tuple[Any, ...]
    label: Any = None
    names: tuple[str, ...] | None = None

    def named(self, names: tuple[str, ...] | None) -> "Parts":
        """These parts with the inputs in the order of ``names``, those of the items before. Raises ``DataError`` where
        the names are others."""
        if names == self.names:
            return self
        if names is None or self.names is None or set(names) != set(self.names):
            raise DataError(f"its inputs are {_spelt(self.names)}, those of the items before are {_spelt(names)}.")
        place = {name: i for i, name in enumerate(self.names)}
        return Parts(tuple(self.inputs[place[name]] for name in names), self.label, names)


def _spelt(names: tuple[str, ...] | None) -> str:
    return "without names" if names is None else ", ".join(names)


@dataclass(frozen=True, slots=True)
class Picker:
    """How to take items apart: ``inputs`` are keys or positions (``None``: by the rules), ``labels`` a key or
    position, ``True`` (by the rules) or ``False`` (none); ``single`` tells samples from batches."""

    inputs: tuple[int | str, ...] | None = None
    labels: bool | int | str = True
    single: bool = False

    def __call__(self, item: Any) -> Parts:
        """The parts of an item. Raises ``DataError`` if it lacks a key or position that the user named."""
        if hasattr(item, "_asdict"):
            item = item._asdict()
        if isinstance(item, Mapping):
            parts = self._mapping(item)
        elif isinstance(item, (tuple, list)) and not _is_numbers(item):
            parts = self._tuple(tuple(item))
        else:
            if self.inputs not in (None, (0,)) or not isinstance(self.labels, bool):
                raise DataError(f"`inputs` and `labels` name parts, but each item is a single {type(item).__name__}.")
            parts = Parts((item,))
        if not parts.inputs:
            raise DataError(f"There is no input in an item of type {type(item).__name__}; name it by `inputs`.")
        return parts if self.labels is not False else Parts(parts.inputs, None, parts.names)

    def _mapping(self, item: Mapping[str, Any]) -> Parts:
        label = next((key for key in LABEL_KEYS if key in item and key not in (self.inputs or ())), None)
        if not isinstance(self.labels, bool):
            label = str(self.labels)
        keys: list[Any]
        if self.inputs is not None:
            keys = list(self.inputs)
        else:
            arrays = [key for key, value in item.items() if key != label and self._is_input(value)]
            generic = [key for key in INPUT_KEYS if key in item and key != label]
            beside = [key for key in arrays if key not in generic[:1] and not self._is_number(item[key])]
            keys = generic[:1] if generic and not beside else arrays
        for key in (*keys, *([] if label is None else [label])):
            if key not in item:
                raise DataError(f"The data has no {key!r}; {nearest(str(key), map(str, item))}")
        generic_only = len(keys) == 1 and keys[0] in INPUT_KEYS
        names = None if generic_only else tuple(str(key) for key in keys)
        return Parts(tuple(item[key] for key in keys), None if label is None else item[label], names)

    def _tuple(self, item: tuple[Any, ...]) -> Parts:
        positions = [*(self.inputs or ()), *([] if isinstance(self.labels, bool) else [self.labels])]
        for position in positions:
            if not isinstance(position, int) or not -len(item) <= position < len(item):
                raise DataError(f"The data is a tuple of {len(item)} parts and has no part {position!r}.")
        label = None
        if not isinstance(self.labels, bool):
            label = int(self.labels) % len(item)
        elif len(item) > 1 and (item[-1] is None or self._is_label(item[-1])):
            label = len(item) - 1
        target = None if label is None else item[label]
        if self.inputs is not None:
            return Parts(tuple(item[int(position)] for position in self.inputs), target)
        rest = [part for position, part in enumerate(item) if position != label]
        if len(rest) == 1 and isinstance(rest[0], (Mapping, tuple, list)) and not _is_numbers(rest[0]):
            inner = Picker(None, True, self.single)(rest[0])
            return Parts(inner.inputs, target if label is not None else inner.label, inner.names)
        return Parts(tuple(part for part in rest if self._is_input(part)), target)

    def _is_label(self, value: Any) -> bool:
        """Whether a value is one integer per sample."""
        if isinstance(value, Tensor):
            integers = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
        elif isinstance(value, (int, np.integer, np.ndarray)) or _is_numbers(value):
            value = np.asarray(value)
            integers = value.dtype.kind in "iu"
        else:
            return False
        return integers and value.ndim == (0 if self.single else 1)

    def _is_number(self, value: Any) -> bool:
        """Whether a value is one number per sample: an index, say."""
        return not isinstance(value, Image.Image) and np.ndim(value) == (0 if self.single else 1)

    def _is_input(self, value: Any) -> bool:
        """Whether a value can be an input: an array or an image, or numbers in a list."""
        if isinstance(value, (Tensor, np.ndarray)):
            return not isinstance(value, np.ndarray) or value.dtype.kind in "biuf"
        return isinstance(value, Image.Image) or _is_numbers(value)


def _is_numbers(value: Any) -> bool:
    """Whether a tuple holds plain numbers, or a list does, perhaps nested."""
    if not isinstance(value, (list, tuple)) or not value:
        return False
    if isinstance(value, list) and all(isinstance(part, list) for part in value):
        return all(_is_numbers(part) for part in value)
    return all(isinstance(part, (int, float, np.number)) for part in value)
