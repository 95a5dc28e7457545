"""Grouping solvers: from a space's statistics to merge and unmerge matrices."""

from fxfuse.passes.solvers.table import (
    SOLVERS,
    Solver,
    SolverName,
    check_options,
    check_space,
    find_solver,
    solver_options,
)

__all__ = ["SOLVERS", "Solver", "SolverName", "check_options", "check_space", "find_solver", "solver_options"]
