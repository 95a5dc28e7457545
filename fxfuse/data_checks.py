"""Whether data can be used at all, told before the work begins."""

import torch
from torch import Tensor

from fxfuse.data import labels_at_hand
from fxfuse.errors import DataError
from fxfuse.label_space import UNKNOWN
from fxfuse.samples import Samples


def check(
    samples: Samples,
    num_classes: int | None = None,
    *,
    what: str = "calibration data",
    at_most: int | None = None,
    judged: bool = False,
) -> None:
    """Raise ``DataError`` unless the samples can be used.

    There must be two or more; inputs must be finite and of one shape; labels, if any, must be class indices from 0,
    below ``num_classes`` if that is given, or -100 for a sample without one. Reads all samples, or ``at_most``, evenly
    spread (data often lie class by class), and all labels that can be had without reading inputs. ``what`` names the
    data in messages. Data that networks are only ``judged`` by may have a class index for every position, or
    floating-point targets, which must be finite.
    """
    subject = f"The {what} ({samples.description})"
    if len(samples) == 0:
        raise DataError(f"{subject} is empty.")
    if len(samples) == 1:
        raise DataError(f"{subject} has one sample; at least two are needed, a few hundred are better.")
    count = len(samples) if at_most is None else min(at_most, len(samples))
    shapes = None
    spread = (torch.arange(count) * len(samples)).div(count, rounding_mode="floor")
    for numbers in torch.split(spread, 256):
        inputs, labels = samples.take(numbers)
        for number, x in enumerate(inputs):
            _check_finite(x, subject, "" if len(inputs) == 1 else f"input {number} of ", numbers)
        if shapes is None:
            shapes = [x.shape[1:] for x in inputs]
        if shapes != (found := [x.shape[1:] for x in inputs]):
            both = f"{[tuple(s) for s in found]} and {[tuple(s) for s in shapes]}"
            raise DataError(f"{subject} has samples of different shapes: {both}, at sample {int(numbers[0])}.")
        if labels is not None:
            _check_labels(labels, num_classes, subject, numbers, judged)
    check_labels(samples, num_classes, what, judged)


def check_labels(samples: Samples, num_classes: int | None, what: str, judged: bool = False) -> None:
    """Raise ``DataError`` for labels that are out of range, as far as they are known without reading inputs."""
    labels = labels_at_hand(samples)
    if labels is not None:
        _check_labels(labels, num_classes, f"The {what} ({samples.description})", torch.arange(len(labels)), judged)


def _check_finite(x: Tensor, subject: str, part: str, numbers: Tensor) -> None:
    if not (x.is_floating_point() or x.is_complex()) or bool(torch.isfinite(x).all()):
        return
    bad = ~torch.isfinite(x)
    first = int(bad.flatten(1).any(1).nonzero()[0]) if x.ndim > 1 else int(bad.nonzero()[0])
    kind = "NaN" if bool(torch.isnan(x[first]).any()) else "infinite"
    raise DataError(f"{subject}: {part}sample {int(numbers[first])} has {kind} values; every input must be finite.")


def _check_labels(labels: Tensor, num_classes: int | None, subject: str, numbers: Tensor, judged: bool) -> None:
    if judged and labels.is_floating_point():
        _check_finite(labels, subject, "the target of ", numbers)
        return
    if not judged and (labels.is_floating_point() or labels.ndim != 1):
        whole = labels.ndim == 1 and bool((labels == labels.round()).all())
        cure = "store them as integers, or " if whole else ""
        raise DataError(
            f"{subject}: labels must be one class index per sample. Got {labels.dtype} of shape {tuple(labels.shape)}; "
            f"{cure}say `labels: false` to do without."
        )
    labels = labels.long()
    wrong = labels < 0 if num_classes is None else (labels < 0) | (labels >= num_classes)
    wrong &= labels != UNKNOWN
    if bool(wrong.any()):
        first = int(wrong.reshape(len(labels), -1).any(1).nonzero()[0])
        bound = "not be negative" if num_classes is None else f"lie in 0..{num_classes - 1}, the model's classes"
        raise DataError(f"{subject}: labels must {bound}. Got {int(labels[wrong][0])} at sample {int(numbers[first])}.")
