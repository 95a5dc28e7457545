"""A method is a choice of three words: which solver groups, what fits the levels, what fits the head.

No method knows an architecture, and no other place lists methods: the command line, the recipes, the tests and the
documentation read this table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fxfuse.errors import MethodError, nearest
from fxfuse.passes.fitting import FitKind
from fxfuse.passes.importance import ImportanceName
from fxfuse.passes.merges import MergeKind
from fxfuse.passes.solvers import SolverName
from fxfuse.passes.views import Views
from fxfuse.passes.weight_matching import Search

Statistics = Literal["activations", "weights"]
Reads = Literal["groups", "regression"]
Form = Literal["fused", "ensemble", "select"]
Dial = Literal["levels", "neurons"]


@dataclass(frozen=True, slots=True)
class Preset:
    """One method: how neurons are grouped (``solver``, its ``options``, the ``importance`` that weighs them), what fits
    the levels, and whether all of them are fitted together at the end (``joint``).

    ``statistics`` says what neurons are compared by; by weights, ``search`` is the way through the spaces
    (:mod:`fxfuse.passes.weight_matching`). ``views`` are the values that activations are read from: where they are
    ``read``, or also where they are ``formed``, before the nonlinearity. ``reads`` says how a neuron is found again in
    the fused network: by its ``groups``, or by ``regression`` on all fused neurons (:mod:`fxfuse.passes.reads`).
    ``form`` is what comes out: one ``fused`` network, or all parents side by side in one graph, which answer together
    (``ensemble``) or of which one is chosen per sample (``select``). With ``budget`` only as many levels are fused as
    that factor on one network's parameters demands (:mod:`fxfuse.passes.partial`), or, by ``dial``, only as many
    neurons (:mod:`fxfuse.passes.similar`). ``merge`` makes one tensor of
    several that are in one order (:mod:`fxfuse.passes.merges`), with ``merge_options``.
    """

    summary: str
    solver: SolverName
    fit: FitKind = "none"
    joint: bool = False
    importance: ImportanceName = "uniform"
    options: Mapping[str, Any] = field(default_factory=dict)
    statistics: Statistics = "activations"
    search: Search = "sweep"
    views: Views = "read"
    reads: Reads = "groups"
    form: Form = "fused"
    budget: float | None = None
    dial: Dial = "levels"
    merge: MergeKind = "mean"
    merge_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def observes(self) -> bool:
        """Whether neurons' activations decide about the grouping."""
        return (self.solver != "average" and self.statistics == "activations") or self.reads == "regression"

    @property
    def needs_data(self) -> bool:
        """Whether the method looks at data at all."""
        return self.observes or self.fit != "none"

    @property
    def needs_base(self) -> bool:
        """Whether the method needs the model that the parents were trained from."""
        return self.merge in ("task", "ties")


METHODS: Mapping[str, Preset] = {
    "average": Preset("mean of the weights as they stand; what every other method is compared with", "average"),
    "lerp": Preset(
        "the same, for parents that share an ancestor: interpolates between them by their shares", "average"
    ),
    "average-linear": Preset(
        "average, then every layer by least squares, after RegMean (Jin et al., 2023), the head by gradient",
        "average", "linear",
    ),
    "task-arithmetic": Preset(
        "what training changed in a base model, added up (Ilharco et al., 2023); needs the base model, no data",
        "average", merge="task",
    ),
    "ties": Preset(
        "the same with small changes cut and signs elected (Yadav et al., 2023); needs the base model, no data",
        "average", merge="ties",
    ),
    "kl": Preset(
        "posteriors of neurons matched by divergence, merged by precision (Claici et al., 2020); data or precisions",
        "kl", statistics="weights", merge="precision",
    ),
    "ot": Preset("optimal transport of neurons to a reference parent (Singh and Jaggi, 2020)", "ot"),
    "ot-sinkhorn": Preset(
        "the same with entropic plans, by Sinkhorn's iteration", "ot", options={"regularisation": 0.003}
    ),
    "ot-weights": Preset(
        "the same on incoming weights, layer after layer; needs no data", "ot", options={"metric": "cosine"},
        statistics="weights",
    ),
    "rebasin": Preset(
        "permute parents' neurons onto one another, then average (Ainsworth et al., 2023)", "rebasin", views="formed"
    ),
    "rebasin-weights": Preset(
        "the same by weight matching, all spaces in turn to a fixed point; needs no data", "rebasin",
        statistics="weights", search="ascent",
    ),
    "zip": Preset("merge the most correlated neurons within and across parents (Stoica et al., 2024)", "zip"),
    "transplant": Preset(
        "keep the most important neurons of all parents side by side (Oez et al., 2025); needs no data", "transplant",
        importance="norm-product", statistics="weights", search="back",
    ),
    "transplant-read": Preset(
        "the same, and whoever read a dropped neuron reads it from the others by regression", "transplant",
        importance="norm-product", statistics="weights", search="back", reads="regression",
    ),
    "hungarian": Preset(
        "importance-weighted assignment, no fit", "hungarian", importance="conductance"
    ),
    "kmeans": Preset("importance-weighted clusters of neurons, no fit", "kmeans", importance="conductance"),
    "hungarian-read": Preset(
        "assignment; every neuron is read from all fused ones by regression, in closed form", "hungarian",
        importance="conductance", reads="regression",
    ),
    "kmeans-read": Preset(
        "clusters; every neuron is read from all fused ones by regression, in closed form", "kmeans",
        importance="conductance", reads="regression",
    ),
    "zip-read": Preset(
        "correlated pairs; every neuron is read from all fused ones by regression", "zip",
        importance="conductance", reads="regression",
    ),
    "hungarian-linear": Preset(
        "assignment, then every layer by least squares and the head by gradient",
        "hungarian", "linear", importance="conductance", reads="regression",
    ),
    "kmeans-linear": Preset(
        "clusters, then every layer by least squares and the head by gradient",
        "kmeans", "linear", importance="conductance",
    ),
    "hungarian-gradient": Preset(
        "assignment, then every level and all together by gradient: the default, the best measured",
        "hungarian", "gradient", joint=True, importance="conductance", reads="regression",
    ),
    "kmeans-gradient": Preset(
        "clusters, then every level and all together by gradient",
        "kmeans", "gradient", joint=True, importance="conductance",
    ),
    "partial": Preset(
        "as hungarian-gradient, but only as many of the first levels are fused as a budget demands; the rest branches",
        "hungarian", "gradient", joint=True, importance="conductance", reads="regression", budget=1.5,
    ),
    "partial-neurons": Preset(
        "as hungarian-gradient, but only neurons that are similar enough are fused, in a network as wide as a budget",
        "hungarian", "gradient", joint=True, importance="conductance", budget=1.5, dial="neurons",
    ),
    "ensemble": Preset(
        "all parents side by side in one graph, their answers averaged; needs no data", "average", form="ensemble"
    ),
    "select": Preset(
        "all parents side by side in one graph, and a router that asks one of them; needs no data", "average",
        form="select",
    ),
}  # fmt: skip

DEFAULT = "hungarian-gradient"


def find_method(name: str) -> Preset:
    """The preset of a method. Raises ``MethodError`` with the nearest known name."""
    if name not in METHODS:
        raise MethodError(f"unknown method {name!r}: {nearest(name, METHODS)}")
    return METHODS[name]
