"""The table of grouping solvers: one name, one function, one file each.

A solver is a pure function ``solve(stats, target, *, weights, generator, **options) -> Grouping`` on an ordinary
space. It sees statistics only: ``stats`` (see :class:`fxfuse.types.SpaceStatistics`), the fused width ``target``, the
parents' ``weights`` (non-negative, sum 1) and a seeded ``generator``. A parent of weight zero has no influence on the
fused function.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from fxfuse.errors import MethodError, nearest
from fxfuse.passes.solvers.average import check_space as check_average
from fxfuse.passes.solvers.average import solve as average
from fxfuse.passes.solvers.hungarian import solve as hungarian
from fxfuse.passes.solvers.kl import check_space as check_kl
from fxfuse.passes.solvers.kl import solve as kl
from fxfuse.passes.solvers.kmeans import check_space as check_kmeans
from fxfuse.passes.solvers.kmeans import solve as kmeans
from fxfuse.passes.solvers.ot import check_space as check_ot
from fxfuse.passes.solvers.ot import solve as ot
from fxfuse.passes.solvers.rebasin import check_space as check_rebasin
from fxfuse.passes.solvers.rebasin import solve as rebasin
from fxfuse.passes.solvers.transplant import solve as transplant
from fxfuse.passes.solvers.zip import solve as zipped
from fxfuse.types import Grouping

SolverName = Literal["average", "hungarian", "kl", "kmeans", "ot", "rebasin", "transplant", "zip"]
Solver = Callable[..., Grouping]

SOLVERS: Mapping[SolverName, Solver] = {
    "average": average,
    "hungarian": hungarian,
    "kl": kl,
    "kmeans": kmeans,
    "ot": ot,
    "rebasin": rebasin,
    "transplant": transplant,
    "zip": zipped,
}

CHECKS: Mapping[str, Callable[..., None]] = {
    "average": check_average,
    "kl": check_kl,
    "kmeans": check_kmeans,
    "ot": check_ot,
    "rebasin": check_rebasin,
}
"""What a solver asks of widths and options whatever the statistics are; the others take any."""

_COMMON = {"stats", "target", "weights", "generator"}


def solver_options(name: SolverName) -> dict[str, Any]:
    """The options that a solver takes, with their defaults."""
    parameters = inspect.signature(find_solver(name)).parameters
    return {key: parameter.default for key, parameter in parameters.items() if key not in _COMMON}


def find_solver(name: str) -> Solver:
    """The solver of that name; raises :class:`MethodError` naming the nearest known one."""
    for known, solver in SOLVERS.items():
        if known == name:
            return solver
    raise MethodError(f"unknown grouping solver {name!r}; {nearest(name, SOLVERS)}")


def check_options(name: SolverName, options: Mapping[str, Any]) -> None:
    """Raise :class:`MethodError` for an option that the solver does not have, and for a value of another kind than its
    signature says."""
    known = inspect.signature(find_solver(name)).parameters
    own = solver_options(name)
    for key, value in options.items():
        if key not in own:
            hint = nearest(key, own) if own else "it has none"
            raise MethodError(f"grouping solver {name!r} has no option {key!r}; {hint}")
        kinds = _kinds(known[key].annotation)
        if not any(_is(value, kind) for kind in kinds):
            *first, last = [word for kind in kinds for word in _words(kind)]
            either = f"{', '.join(first)} or {last}" if first else last
            raise MethodError(f"option {key!r} of {name} must be {either}. Got {value!r}")


def check_space(
    name: SolverName, widths: tuple[int, ...], target: int, weights: tuple[float, ...], options: Mapping[str, Any]
) -> None:
    """Raise :class:`MethodError` where the solver would refuse a space of these ``widths`` whatever its statistics:
    known before any are made."""
    check = CHECKS.get(name)
    if check is not None:
        check(widths, target, weights, **options)


def _kinds(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (UnionType, Union) else (annotation,)


def _is(value: object, kind: Any) -> bool:
    """Whether a value is of one kind: a choice, a switch, a whole number, a finite number, or nothing."""
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if isinstance(value, bool) or kind in (bool, NoneType):
        return type(value) is kind
    return isinstance(value, int) or (kind is float and isinstance(value, float) and math.isfinite(value))


def _words(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return [repr(word) for word in get_args(kind)]
    return [{bool: "true or false", NoneType: "null", int: "a whole number"}.get(kind, "a finite number")]
