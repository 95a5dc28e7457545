"""The operator table: how neuron axes flow through every operator that fxfuse knows."""

from fxfuse.passes.algebra import check_owners, unify
from fxfuse.passes.axis_rules import contractions, indexing, matrices, norms, pointwise, recurrent, shapes, spatial
from fxfuse.passes.axis_rules.core import RULES, Call, Meaning, Trace, axis_rule, rule_for
from fxfuse.passes.variables import fresh, pin

__all__ = [
    "RULES",
    "Call",
    "Meaning",
    "Trace",
    "axis_rule",
    "check_owners",
    "contractions",
    "fresh",
    "indexing",
    "matrices",
    "norms",
    "pin",
    "pointwise",
    "recurrent",
    "rule_for",
    "shapes",
    "spatial",
    "unify",
]
