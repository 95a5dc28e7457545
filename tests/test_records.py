import pytest
from pydantic import Field

from fxfuse.errors import RecipeError
from fxfuse.records import Record, path_of, shown


class Inner(Record):
    steps: int = 1
    rate: float = Field(default=0.1, gt=0)
    name: str = "a"
    on: bool = False


class Outer(Record):
    fit: Inner = Inner()
    parts: tuple[Inner, ...] = ()
    needed: int


def message(**data: object) -> str:
    with pytest.raises(RecipeError) as caught:
        Outer(**data)
    return str(caught.value)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            {"needed": 1, "fit": {"stpes": 2}},
            "`fit.stpes` is not a known key: did you mean 'steps'? Known: name, on, rate",
        ),
        ({"needed": 1, "nedeed": 2}, "`nedeed` is not a known key: did you mean 'needed'?"),
        ({"needed": 1, "parts": [{}, {"rate": 0}]}, "`parts[1].rate` must be greater than 0. Got 0."),
        ({"needed": 1, "parts": 3}, "`parts` must be a list. Got 3."),
        ({"needed": 1, "fit": []}, "`fit` must be a mapping. Got []."),
        ({"needed": 1, "fit": {"on": "perhaps"}}, "`fit.on` must be true or false. Got 'perhaps'."),
        ({"needed": 1, "fit": {"name": 3}}, "`fit.name` must be a string. Got 3."),
        ({"needed": 1.5}, "`needed` must be an integer. Got 1.5."),
        ({"needed": "x", "fit": {"rate": "y"}}, "`fit.rate` must be a number. Got 'y'. (Also wrong: `needed`.)"),
        ({}, "`needed` is missing."),
    ],
)
def test_a_mistake_is_one_sentence_with_its_path(data: dict[str, object], expected: str) -> None:
    assert expected in message(**data)


def test_records_are_frozen_and_equal_by_value() -> None:
    assert Inner(steps=2) == Inner(steps=2)
    with pytest.raises(ValueError, match="frozen"):
        Inner().steps = 3


def test_words_for_places_and_values() -> None:
    assert path_of(("parents", 1, "share")) == "parents[1].share"
    assert path_of(()) == ""
    assert shown("x" * 100).endswith("...")
    assert len(shown("x" * 100)) == 60
