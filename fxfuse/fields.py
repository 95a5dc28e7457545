"""Entries of a record that may be written in more than one way, each reduced to one form.

Each function takes what the user wrote and returns the reduced form, or raises ``ValueError`` with a sentence that
starts with "must be"; ``fxfuse.records`` puts the entry's path before it.
"""

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from fxfuse.device import FORM
from fxfuse.records import shown
from fxfuse.types import Granularity

Text = Annotated[str, Field(min_length=1)]
Positive = Annotated[int, Field(ge=1)]
TRANSFORMATIONS = ("shift", "flip", "mix")
"""Names of :data:`fxfuse.passes.augment.Transformation`, here again so that reading a recipe is quick."""


def fraction(value: object) -> object:
    """``"1/255"`` as the number that it means."""
    if isinstance(value, str) and "/" in value:
        try:
            return float(Fraction(value.replace(" ", "")))
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"must be a number or a fraction such as 1/255. Got {value!r}.") from None
    return value


def listed(value: object) -> object:
    """A single entry as a list of one."""
    return value if value is None or isinstance(value, (list, tuple)) else (value,)


def granularity_of(value: object) -> Granularity:
    """``block``, ``layer``, a number of levels, or names of boundary nodes."""
    if value == "block" or value == "layer":
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    if isinstance(value, (list, tuple)) and value and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise ValueError(f"must be 'block', 'layer', a number of levels or a list of node names. Got {shown(value)}.")


def labels_of(value: object) -> bool | int | str:
    """Whether there are labels, or their key or position."""
    if isinstance(value, (bool, int, str)) and value != "":
        return value
    raise ValueError(f"must be true, false, or the key or position of the labels. Got {shown(value)}.")


def keys_of(value: object) -> tuple[int | str, ...]:
    """One or more keys of a mapping or positions in a tuple."""
    keys = listed(value)
    if isinstance(keys, tuple | list) and keys and all(type(key) in (int, str) for key in keys):
        return tuple(keys)
    raise ValueError(f"must be a key, a position or a list of them. Got {shown(value)}.")


def class_name_of(value: object) -> str | int:
    """A class by its name or its number."""
    if isinstance(value, (str, int)) and not isinstance(value, bool) and value != "":
        return value
    raise ValueError(f"must be the name or the number of a class. Got {shown(value)}.")


def budget_of(value: object) -> float | str | None:
    """A factor, or a text that says how much of what (:func:`fxfuse.passes.costs.parse_budget`)."""
    if value is None or (isinstance(value, (str, int, float)) and not isinstance(value, bool) and value != ""):
        return value
    raise ValueError(
        f"must be a factor on one network's parameters, or a text such as '1.5x flops'. Got {shown(value)}."
    )


def augment_of(value: object) -> Literal["auto", "none"] | tuple[str, ...]:
    """``auto``, ``none``, or names of transformations."""
    if value == "auto" or value == "none":
        return value
    if isinstance(value, (list, tuple)) and all(name in TRANSFORMATIONS for name in value):
        return tuple(value)
    names = ", ".join(TRANSFORMATIONS)
    raise ValueError(f"must be 'auto', 'none' or a list of transformations ({names}). Got {shown(value)}.")


def device_of(value: str) -> str:
    """A device in one of the forms that ``fxfuse.device.pick_device`` takes."""
    if not FORM.fullmatch(value):
        raise ValueError(f"must be 'auto', 'cpu', 'cuda' or 'cuda:<index>'. Got {value!r}.")
    return value


def short(key: str, *kinds: type) -> BeforeValidator:
    """Lets a record be written as the value of its main key alone."""

    def expand(value: object) -> object:
        return {key: value} if isinstance(value, kinds) and not isinstance(value, bool) else value

    return BeforeValidator(expand)


Number = Annotated[float, BeforeValidator(fraction), Field(allow_inf_nan=False)]
Numbers = Annotated[tuple[Number, ...], BeforeValidator(listed), Field(min_length=1)]
Extent = Annotated[tuple[Positive, ...], BeforeValidator(listed), Field(min_length=1, max_length=2)]
Augment = Annotated[Literal["auto", "none"] | tuple[str, ...], BeforeValidator(augment_of)]
Cut = Annotated[Granularity, BeforeValidator(granularity_of)]
Device = Annotated[str, AfterValidator(device_of)]
Keys = Annotated[tuple[int | str, ...], BeforeValidator(keys_of)]
Labels = Annotated[bool | int | str, BeforeValidator(labels_of)]
Share = Annotated[float, BeforeValidator(fraction), Field(ge=0, allow_inf_nan=False)]
ClassName = Annotated[str | int, BeforeValidator(class_name_of)]
BudgetText = Annotated[float | str | None, BeforeValidator(budget_of)]
Above0 = Annotated[float, BeforeValidator(fraction), Field(gt=0, allow_inf_nan=False)]
