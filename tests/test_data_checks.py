"""What is wrong with data is told with its place; labels that lie at hand are all looked at."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fxfuse.data import labels_at_hand, samples_from
from fxfuse.data_checks import check, check_labels
from fxfuse.errors import DataError
from fxfuse.label_space import UNKNOWN
from fxfuse.samples import Relabelled, Subset, TensorSamples, Unlabelled

X, Y = torch.rand(10, 3, 4), torch.arange(10) % 3


class Items(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Items whose labels stand in a list beside them, and what was read."""

    def __init__(self, values: list[Tensor], targets: list[int] | None = None) -> None:
        self.values, self.own, self.read = values, targets, 0
        if targets is not None:
            self.targets = targets

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Any:
        self.read += 1
        return self.values[index] if self.own is None else (self.values[index], self.own[index])


def spoilt(value: float) -> Tensor:
    x = X.clone()
    x[7, 1, 2] = value
    return x


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ((X[:0], Y[:0]), "The calibration data (tuple given in Python) is empty."),
        (X[:1], "has one sample; at least two are needed"),
        (spoilt(torch.nan), "sample 7 has NaN values; every input must be finite."),
        (spoilt(torch.inf), "sample 7 has infinite values"),
        ((X, spoilt(torch.nan)), "input 1 of sample 7 has NaN values"),
        ((X, Y + 1), "labels must lie in 0..2, the model's classes. Got 3 at sample 2."),
        ((X, Y - 1), "Got -1 at sample 0"),
        ({"x": X, "y": Y.float()}, "labels must be one class index per sample. Got torch.float32 of shape (10,)"),
        ({"x": X, "y": Y[:, None].float()}, "of shape (10, 1); say `labels: false` to do without."),
        ({"x": X, "y": Y.float()}, "of shape (10,); store them as integers, or say `labels: false`"),
    ],
)
def test_bad_samples_are_named(data: Any, expected: str) -> None:
    with pytest.raises(DataError) as caught:
        check(samples_from(data), 3)
    assert expected in str(caught.value)


def test_what_check_reads_and_says() -> None:
    check(samples_from(spoilt(torch.nan)), at_most=5)
    with pytest.raises(DataError, match=r"The evaluation data .* labels must not be negative. Got -1 at sample 0"):
        check(samples_from((X, Y - 1)), what="evaluation data")
    ragged = samples_from(Items([torch.rand(2), torch.rand(3)]))
    with pytest.raises(DataError, match=r"sample 1 has shape \(3,\) and sample 0 \(2,\)"):
        check(ragged)


def test_labels_at_hand_are_all_looked_at_and_no_input_is_read_for_it() -> None:
    items = Items(list(X), [0] * 9 + [7])
    samples = samples_from(items)
    read = items.read
    with pytest.raises(
        DataError, match=r"The evaluation data .* lie in 0\.\.2, the model's classes\. Got 7 at sample 9"
    ):
        check_labels(samples, 3, "evaluation data")
    assert items.read == read
    with pytest.raises(DataError, match="Got 7 at sample 9"):
        check(samples, 3, at_most=2)
    items.target_transform = int  # then the list says nothing about what the items give
    check(samples, 3, at_most=2)


def test_labels_at_hand_behind_other_samples() -> None:
    samples = TensorSamples((X,), Y)
    assert torch.equal(labels_at_hand(Subset(samples, torch.tensor([2, 4]))), torch.tensor([2, 1]))  # type: ignore[arg-type]
    assert labels_at_hand(Unlabelled(samples)) is None
    table, names = torch.tensor([5, 6, 7]), [str(number) for number in range(8)]
    one, other = (Relabelled(own, table, names) for own in (samples, TensorSamples((X,), torch.full((10,), UNKNOWN))))
    assert labels_at_hand(one).unique().tolist() == [5, 6, 7]  # type: ignore[union-attr]
    assert labels_at_hand(other).unique().tolist() == [UNKNOWN]  # type: ignore[union-attr]
    assert torch.equal(one.take(torch.arange(3))[1], table)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [torch.int64, torch.int16, torch.uint8])
def test_a_sample_may_have_no_label(kind: torch.dtype) -> None:
    labels = Y.clone()
    if kind != torch.uint8:
        labels[4] = UNKNOWN
    check(samples_from((X, labels.to(kind))), 3)
