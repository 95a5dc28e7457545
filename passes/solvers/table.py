"""The table of grouping solvers: one name, one function, one file each.

A solver is a pure function ``solve(stats, target, *, weights, generator, **options) -> Grouping`` on an ordinary
space. It sees statistics only: ``stats`` (see :class:`fxfuse.types.SpaceStatistics`), the fused width ``target``, the
parents' ``weights`` (non-negative, sum 1) and a seeded ``generator``. A parent of weight zero has no influence on the
fused function.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

from fxfuse.errors import MethodError, nearest
from fxfuse.passes.solvers.average import solve as average
from fxfuse.passes.solvers.hungarian import solve as hungarian
from fxfuse.passes.solvers.kl import solve as kl
from fxfuse.passes.solvers.kmeans import solve as kmeans
from fxfuse.passes.solvers.ot import solve as ot
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
    """Raise :class:`MethodError` for an option that the solver does not have."""
    known = solver_options(name)
    for key in options:
        if key not in known:
            hint = nearest(key, known) if known else "it has none"
            raise MethodError(f"grouping solver {name!r} has no option {key!r}; {hint}")
