from typing import Any

import pytest

from fxfuse.errors import RecipeError
from fxfuse.fields import TRANSFORMATIONS, Augment, Cut, Device, Extent, Keys, Labels, Number, Numbers, short
from fxfuse.passes.augment import KNOWN
from fxfuse.records import Record


class All(Record):
    number: Number = 1.0
    numbers: Numbers = (1.0,)
    extent: Extent = (1,)
    augment: Augment = "auto"
    cut: Cut = "block"
    device: Device = "auto"
    keys: Keys = (0,)
    labels: Labels = True


@pytest.mark.parametrize(
    ("key", "written", "expected"),
    [
        ("number", "1/4", 0.25),
        ("number", "1 / 4", 0.25),
        ("number", "1e-3", 1e-3),
        ("numbers", 0.5, (0.5,)),
        ("numbers", [0.5, "1/2"], (0.5, 0.5)),
        ("extent", 32, (32,)),
        ("extent", [32, 48], (32, 48)),
        ("augment", "none", "none"),
        ("augment", ["flip"], ("flip",)),
        ("cut", "layer", "layer"),
        ("cut", 4, 4),
        ("cut", ["a", "b"], ("a", "b")),
        ("device", "cuda:1", "cuda:1"),
        ("keys", "x", ("x",)),
        ("keys", [0, 2], (0, 2)),
        ("labels", False, False),
        ("labels", 1, 1),
        ("labels", "y", "y"),
    ],
)
def test_every_way_of_writing_is_reduced_to_one_form(key: str, written: object, expected: object) -> None:
    value = getattr(All(**{key: written}), key)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("key", "written", "expected"),
    [
        ("number", "1/x", "`number` must be a number or a fraction such as 1/255. Got '1/x'."),
        ("number", "1/0", "fraction"),
        ("number", float("inf"), "must be a finite number"),
        ("numbers", [], "must have 1 or more entries"),
        ("extent", [1, 2, 3], "must have 2 or fewer entries"),
        ("extent", 0, "`extent[0]` must be at least 1"),
        ("augment", "flip", "must be 'auto', 'none' or a list"),
        ("augment", ["rotate"], "a list of transformations (shift, flip, mix)"),
        ("cut", "blok", "must be 'block', 'layer', a number of levels or a list of node names. Got 'blok'."),
        ("cut", 0, "must be 'block'"),
        ("cut", True, "must be 'block'"),
        ("device", "gpu", "must be 'auto', 'cpu', 'cuda' or 'cuda:<index>'. Got 'gpu'."),
        ("keys", [], "must be a key, a position or a list of them. Got []."),
        ("keys", [True], "must be a key"),
        ("labels", None, "must be true, false, or the key or position"),
    ],
)
def test_anything_else_is_refused_by_name(key: str, written: Any, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        All(**{key: written})
    assert expected in str(caught.value)


def test_the_names_of_transformations_are_those_that_there_are() -> None:
    assert TRANSFORMATIONS == KNOWN


def test_short_forms_expand_to_the_main_key_only_for_their_types() -> None:
    expand = short("source", str).func
    assert expand("a") == {"source": "a"}  # type: ignore[call-arg]
    assert expand(3) == 3  # type: ignore[call-arg]
    assert short("count", int).func(True) is True  # type: ignore[call-arg]
