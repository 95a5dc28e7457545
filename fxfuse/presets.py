"""A method is a choice of three words: which solver groups, what fits the levels, what fits the head.

No method knows an architecture, and no other place lists methods: the command line, the recipes, the tests and the
documentation read this table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fxfuse.errors import MethodError, nearest
from fxfuse.passes.fitting import FitKind
from fxfuse.passes.importance import ImportanceName
from fxfuse.passes.solvers import SolverName


@dataclass(frozen=True, slots=True)
class Preset:
    """One method: how neurons are grouped (``solver``, its ``options``, the ``importance`` that weighs them), what fits
    the levels, and whether all of them are fitted together at the end (``joint``)."""

    summary: str
    solver: SolverName
    fit: FitKind = "none"
    joint: bool = False
    importance: ImportanceName = "uniform"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs_data(self) -> bool:
        """Whether the method looks at activations at all."""
        return self.solver != "average" or self.fit != "none"


METHODS: Mapping[str, Preset] = {
    "average": Preset("mean of the weights as they stand; what every other method is compared with", "average"),
    "ot": Preset("optimal transport of neurons to a reference parent (Singh and Jaggi, 2020)", "ot"),
    "rebasin": Preset("permute parents' neurons onto one another, then average (Ainsworth et al., 2023)", "rebasin"),
    "zip": Preset("merge the most correlated neurons within and across parents (Stoica et al., 2024)", "zip"),
    "transplant": Preset(
        "keep the most important neurons of all parents side by side (Oez et al., 2025)", "transplant",
        importance="magnitude",
    ),
    "hungarian": Preset(
        "importance-weighted assignment, no fit", "hungarian", importance="conductance"
    ),
    "kmeans": Preset("importance-weighted clusters of neurons, no fit", "kmeans", importance="conductance"),
    "hungarian-linear": Preset(
        "assignment, then every layer by least squares and the head by gradient",
        "hungarian", "linear", importance="conductance",
    ),
    "kmeans-linear": Preset(
        "clusters, then every layer by least squares and the head by gradient",
        "kmeans", "linear", importance="conductance",
    ),
    "hungarian-gradient": Preset(
        "assignment, then every level and all together by gradient: the default, the best measured",
        "hungarian", "gradient", joint=True, importance="conductance",
    ),
    "kmeans-gradient": Preset(
        "clusters, then every level and all together by gradient",
        "kmeans", "gradient", joint=True, importance="conductance",
    ),
}  # fmt: skip

DEFAULT = "hungarian-gradient"


def find_method(name: str) -> Preset:
    """The preset of a method. Raises ``MethodError`` with the nearest known name."""
    if name not in METHODS:
        raise MethodError(f"unknown method {name!r}: {nearest(name, METHODS)}")
    return METHODS[name]
