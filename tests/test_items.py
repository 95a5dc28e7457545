from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fxfuse.errors import DataError
from fxfuse.items import Picker

X, X2, Y, IDS = torch.rand(4, 3), torch.rand(4, 2), torch.arange(4), torch.zeros(4, 7, dtype=torch.int64)
Pair = namedtuple("Pair", ["image", "label"])


@pytest.mark.parametrize(
    ("item", "inputs", "label", "names"),
    [
        (X, (X,), None, None),
        ((X,), (X,), None, None),
        ((X, Y), (X,), Y, None),
        ([X, Y], (X,), Y, None),
        ((X, [0, 1, 2, 3]), (X,), [0, 1, 2, 3], None),
        ((X, X2), (X, X2), None, None),
        ((X, X2, Y), (X, X2), Y, None),
        (((X, X2), Y), (X, X2), Y, None),
        ((IDS, IDS), (IDS, IDS), None, None),
        ((X, None), (X,), None, None),
        ((X, ["a", "b"]), (X,), None, None),
        ({"x": X, "y": Y}, (X,), Y, None),
        ({"images": X, "labels": Y, "index": Y}, (X,), Y, None),
        ({"x": X, "mask": X2, "y": Y}, (X, X2), Y, ("x", "mask")),
        ({"pixel_values": X, "label": Y}, (X,), Y, ("pixel_values",)),
        ({"input_ids": IDS, "attention_mask": IDS}, (IDS, IDS), None, ("input_ids", "attention_mask")),
        (({"a": X, "b": X2}, Y), (X, X2), Y, ("a", "b")),
        (Pair(X, Y), (X,), Y, None),
    ],
)
def test_the_rules_for_batches(item: Any, inputs: tuple[Any, ...], label: Any, names: Any) -> None:
    parts = Picker()(item)
    assert all(a is b for a, b in zip(parts.inputs, inputs, strict=True))
    assert parts.label is label or parts.label == label
    assert parts.names == names
    without = Picker(labels=False)(item)
    assert all(a is b for a, b in zip(without.inputs, inputs, strict=True))
    assert without.label is None


@pytest.mark.parametrize("label", [3, np.int64(3), torch.tensor(3), np.array(3)])
def test_the_rules_for_samples(label: Any) -> None:
    parts = Picker(single=True)((X, label))
    assert (parts.inputs, parts.label) == ((X,), label)
    image = Image.new("L", (2, 2))
    assert Picker(single=True)((image, label)).inputs == (image,)
    assert Picker(single=True)((X, Y)).label is None


def test_parts_that_the_user_names() -> None:
    data = {"a": X, "b": X2, "c": Y}
    parts = Picker(inputs=("b",), labels="c")(data)
    assert parts.inputs[0] is X2
    assert parts.label is Y
    assert parts.names == ("b",)
    parts = Picker(inputs=(2, 0), labels=1)((X, Y, X2))
    assert parts.inputs[0] is X2
    assert parts.inputs[1] is X
    assert parts.label is Y
    assert Picker(inputs=(0,))((X, X2)).inputs == (X,)


@pytest.mark.parametrize(
    ("picker", "item", "expected"),
    [
        (Picker(inputs=("imgaes",)), {"images": X}, "The data has no 'imgaes'; did you mean 'images'?"),
        (Picker(labels="z"), {"images": X}, "The data has no 'z'"),
        (Picker(inputs=(3,)), (X, Y), "The data is a tuple of 2 parts and has no part 3."),
        (Picker(labels="y"), (X, Y), "has no part 'y'"),
        (Picker(labels=1), X, "each item is a single Tensor"),
        (Picker(), {"labels": Y}, "There is no input in an item of type dict"),
        (Picker(), ("a", "b"), "There is no input in an item of type tuple"),
    ],
)
def test_parts_that_are_not_there(picker: Picker, item: Any, expected: str) -> None:
    with pytest.raises(DataError) as caught:
        picker(item)
    assert expected in str(caught.value)
