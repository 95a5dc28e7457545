"""Records that users write: pydantic models whose mistakes come back as one sentence with a path and a cure.

A record is built from keywords and checked when it is built. Any violation, however deep, becomes one ``RecipeError``
that names the entry by its path from the outermost record and says what was expected and what was got::

    `fit.stpes` is not a known key: did you mean 'steps'? Known: augment, batch_size, joint_steps, lr, steps ...
    `parents[1].share` must be at least 0. Got -1.
"""

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from fxfuse.errors import RecipeError, nearest

Location = tuple[int | str, ...]

_MUST_BE: Mapping[str, str] = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping",
    "finite_number": "must be a finite number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "int_from_float": "must be an integer",
    "int_parsing": "must be an integer",
    "int_type": "must be an integer",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "list_type": "must be a list",
    "literal_error": "must be one of {expected}",
    "model_type": "must be a mapping",
    "string_too_short": "must not be empty",
    "string_type": "must be a string",
    "too_long": "must have {max_length} or fewer entries",
    "too_short": "must have {min_length} or more entries",
    "tuple_type": "must be a list",
}


class Record(BaseModel):
    """Base of everything that a user may write into a recipe: frozen, keywords only, unknown keys refused.

    Raises ``RecipeError`` where pydantic would raise its ``ValidationError``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise RecipeError(explain(error, type(self))) from None

    # Without this mark pydantic would build nested records through __init__, and the outer path would be lost.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


def explain(error: ValidationError, record: type[BaseModel]) -> str:
    """The first mistake that pydantic found, as one sentence, and the places of the others."""
    details = error.errors(include_url=False)
    first = details[0]
    path = path_of(first["loc"])
    kind, context, got = first["type"], first.get("ctx", {}), first["input"]
    if kind == "extra_forbidden":
        known = _fields(record, first["loc"][:-1])
        message = f"`{path}` is not a known key: {nearest(str(first['loc'][-1]), known)}"
    elif kind == "missing":
        message = f"`{path}` is missing."
    elif kind == "value_error":
        message = f"`{path}` {context['error']}" if path else str(context["error"])
    else:
        phrase = _MUST_BE.get(kind)
        expected = phrase.format(**context) if phrase else f"is not valid: {first['msg']}"
        message = f"`{path or 'the recipe'}` {expected}. Got {shown(got)}."
    others = [f"`{path_of(d['loc'])}`" for d in details[1:]]
    return f"{message} (Also wrong: {', '.join(others)}.)" if others else message


def path_of(location: Location) -> str:
    """``("parents", 1, "share")`` as ``parents[1].share``."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        else:
            path += f".{step}" if path else step
    return path


def shown(value: object, limit: int = 60) -> str:
    """``repr`` of a value, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _fields(record: type[BaseModel], location: Location) -> list[str]:
    """The keys that the record at ``location`` knows."""
    current: type[BaseModel] | None = record
    for step in location:
        if current is None:
            return []
        if isinstance(step, str) and step in current.model_fields:
            current = _record_in(current.model_fields[step].annotation)
    return [] if current is None else list(current.model_fields)


def _record_in(annotation: Any) -> type[BaseModel] | None:
    """The first record class inside an annotation such as ``tuple[ParentSpec, ...] | None``."""
    if isinstance(annotation, type) and not get_args(annotation) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Annotated, typing.Union, types.UnionType, tuple, list, Sequence, dict):
        for part in get_args(annotation):
            found = _record_in(part)
            if found is not None:
                return found
    return None
