"""The two kinds of samples: rows of arrays, and items of a data set.

Both keep values as they were stored and preprocess what is taken, so that memory does not grow with what
preprocessing makes of the data. ``names`` are the inputs' names where they have any, ``classes`` those of the labels.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxfuse.errors import DataError, FuseError
from fxfuse.items import Parts, Picker
from fxfuse.preprocess import Transform, as_tensor
from fxfuse.types import Batch


class ArraySamples:
    """Samples that are rows of arrays: one array per model input, and labels if there are any."""

    def __init__(
        self, parts: Parts, transform: Transform, description: str, classes: tuple[str, ...] | None = None
    ) -> None:
        self.inputs = tuple(as_tensor(x) for x in parts.inputs)
        self.labels = None if parts.label is None else class_numbers(as_tensor(parts.label))
        self.names = parts.names
        self.transform = transform
        self.description = description
        self.classes = classes
        arrays = [*self.inputs, *([] if self.labels is None else [self.labels])]
        if any(x.ndim == 0 for x in arrays):
            raise DataError(f"{description}: a single number is no array of samples.")
        if len({len(x) for x in arrays}) > 1:
            called = self.names or ("inputs",) * len(self.inputs)
            sizes = ", ".join(f"{name} {len(x)}" for name, x in zip((*called, "labels"), arrays, strict=False))
            raise DataError(f"{description}: its arrays differ in their number of samples ({sizes}).")

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return self.labels is not None

    def __len__(self) -> int:
        return len(self.inputs[0])

    def take(self, indices: Tensor) -> Batch:
        """The samples at ``indices``, preprocessed, as one batch."""
        with told(self.description):
            inputs = tuple(self.transform.values(self.transform.raw_batch(x[indices])) for x in self.inputs)
        return inputs, None if self.labels is None else self.labels[indices]

    def all_labels(self) -> Tensor | None:
        """The labels of all samples."""
        return self.labels


class ItemSamples:
    """Samples that a data set gives one by one, each fetched when it is taken."""

    def __init__(self, items: Any, picker: Picker, transform: Transform, description: str) -> None:
        self.items = items
        self.picker = picker
        self.transform = transform
        self.description = description
        first = self._parts(0) if len(items) else Parts(())
        self.names = first.names
        self.labelled = first.label is not None
        classes = getattr(items, "classes", None)
        self.classes = tuple(map(str, classes)) if isinstance(classes, Sequence) else None

    def __len__(self) -> int:
        return len(self.items)

    def take(self, indices: Tensor) -> Batch:
        """The samples at ``indices``, fetched and preprocessed, as one batch."""
        positions = [int(i) for i in indices]
        parts = [self._parts(position) for position in positions]
        with told(self.description):
            columns = [
                [self.transform.sample(x) for x in column] for column in zip(*(p.inputs for p in parts), strict=True)
            ]
        inputs = tuple(self.transform.values(self._stack(column, positions)) for column in columns)
        return inputs, self._labels(parts) if self.labelled else None

    def all_labels(self) -> Tensor | None:
        """The labels of all samples; from the data set's own list where that is sure to be the same."""
        labels = self.labels_at_hand()
        if labels is not None or not self.labelled:
            return labels
        return self._labels([self._parts(i) for i in range(len(self))])

    def labels_at_hand(self) -> Tensor | None:
        """The data set's own list of labels, if it has one that is sure to be what its items give."""
        targets = getattr(self.items, "targets", None)
        known = self.picker.labels is True and getattr(self.items, "target_transform", None) is None
        if self.labelled and known and isinstance(targets, list | Tensor | np.ndarray) and len(targets) == len(self):
            return as_tensor(targets).to(torch.int64)
        return None

    def _labels(self, parts: Sequence[Parts]) -> Tensor:
        labels = [label_of(p.label, self.description) for p in parts]
        with told(self.description):
            return class_numbers(torch.stack(labels))

    def _parts(self, position: int) -> Parts:
        try:
            parts = self.picker(self.items[position])
            return parts if position == 0 else parts.named(self.names)
        except FuseError as error:
            raise DataError(f"{self.description}, sample {position}: {error}") from None
        except Exception as error:  # a data set is the user's code and may raise anything
            text = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{self.description}, sample {position} cannot be read: {text}") from error

    def _stack(self, column: list[Tensor], positions: list[int]) -> Tensor:
        for position, x in zip(positions, column, strict=True):
            if x.shape != column[0].shape:
                raise DataError(
                    f"{self.description}: sample {position} has shape {tuple(x.shape)} and sample {positions[0]} "
                    f"{tuple(column[0].shape)}; make them equal by `resize: [height, width]`, or `resize` and "
                    "`center_crop`, in `preprocessing`."
                )
        return torch.stack(column)


def class_numbers(labels: Tensor) -> Tensor:
    """Labels that are rows of zeros with a single one, or integers in a column, as one integer per sample; others stay
    as they are."""
    if labels.ndim != 2 or labels.is_complex() or not labels.numel():
        return labels
    if labels.shape[1] == 1:
        return labels if labels.is_floating_point() or labels.dtype == torch.bool else labels.squeeze(1)
    marked = labels == 1
    one_hot = bool(((labels == 0) | marked).all()) and bool((marked.sum(1) == 1).all())
    return marked.to(torch.uint8).argmax(1) if one_hot else labels


def label_of(value: Any, description: str) -> Tensor:
    """One label as a tensor; floating and structured labels are left for ``fxfuse.data.check`` to judge."""
    if value is None:
        raise DataError(f"{description}: some samples have a label and some have none; say `labels: false`.")
    with told(description):
        return as_tensor(value)


@contextlib.contextmanager
def told(description: str) -> Iterator[None]:
    """Turn torch's complaints about shapes and types into ``DataError``, and say which data they are about."""
    try:
        yield
    except DataError as error:
        text = str(error)
        raise DataError(text if text.startswith(description) else f"{description}: {text}") from None
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{description}: {' '.join(str(error).split())}") from error
