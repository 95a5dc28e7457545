"""What becomes of tensors that have been brought into one order: ways to make one of several.

With ``W_p`` the parents' tensors in the fused network's order, ``w_p`` their shares (which sum to 1), ``W_0`` a base
model that all were trained from, and ``t_p = W_p - W_0`` (a *task vector*):

    mean        sum_p w_p W_p
    precision   sum_p w_p L_p W_p / sum_p w_p L_p                       entry by entry, ``L_p`` the precisions
    task        W_0 + c P sum_p w_p t_p                                 task arithmetic (Ilharco et al., 2023)
    ties        W_0 + c P sum_{p agrees} w_p t_p / (P sum_{p agrees} w_p)   TIES (Yadav et al., 2023)

``c`` is the *scale*, ``P`` the number of parents with a share. TIES first cuts every task vector down to the *density*
of its largest entries (over the whole network), elects a sign per entry by the larger total, and averages those that
agree with it. ``mean`` and ``precision`` follow any grouping; ``task`` and ``ties`` need no grouping but the neurons'
own order, which a base model gives.

All are made of the mean: a parent whose tensors have been changed is merged like any other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, fx

from fxfuse.errors import MethodError, nearest
from fxfuse.passes.correspond import Correspondence
from fxfuse.passes.rewrite import fused_state, with_state
from fxfuse.passes.weight_statistics import parameter_names
from fxfuse.types import Grouping

MergeKind = Literal["mean", "precision", "task", "ties"]
State = Mapping[str, Tensor]

MERGE_OPTIONS: Mapping[MergeKind, Mapping[str, float]] = {
    "mean": {},
    "precision": {},
    "task": {"scale": 0.4},
    "ties": {"scale": 1.0, "density": 0.2},
}
"""The options of each kind with the values that Yadav et al. recommend where nothing can be validated."""

LEAST = 1e-30


@dataclass(frozen=True, slots=True)
class Merge:
    """A way of merging and what it needs: ``base`` the base model's state, ``precisions`` one state per parent, all
    under the reference's names."""

    kind: MergeKind = "mean"
    options: Mapping[str, Any] = field(default_factory=dict)
    base: State | None = None
    precisions: tuple[State, ...] = ()

    def apply(
        self, pairs: Correspondence, groupings: Mapping[int, Grouping], shares: Sequence[float]
    ) -> fx.GraphModule:
        """The target's graph with the merged tensors; a copy, in evaluation mode. Raises :class:`MethodError` where
        a base model or precisions are missing or an option is out of range."""
        chosen = merge_options(self.kind, self.options)
        if self.kind == "precision":
            state = self._by_precision(pairs, groupings, shares)
        elif self.kind in ("task", "ties"):
            if self.base is None:
                raise MethodError(f"method {self.kind!r} adds up what training changed: give the base model (base=)")
            changed = _task if self.kind == "task" else _ties
            state = fused_state(_with_states(pairs, changed(pairs, self.base, shares, chosen)), groupings, shares)
        else:
            state = fused_state(pairs, groupings, shares)
        return with_state(pairs.reference.program.module, state)

    def _by_precision(
        self, pairs: Correspondence, groupings: Mapping[int, Grouping], shares: Sequence[float]
    ) -> dict[str, Tensor]:
        if len(self.precisions) != len(pairs.parents):
            raise MethodError(
                "merging posteriors needs a precision for every parameter of every parent: give precisions=, or "
                f"calibration data to estimate them from. Got {len(self.precisions)} for {len(pairs.parents)} parents."
            )
        plain = fused_state(pairs, groupings, shares)
        weighted, own = [], []
        for state, known in zip(reference_states(pairs), self.precisions, strict=True):
            weighted.append({name: x * known[name] if name in known else x for name, x in state.items()})
            own.append({name: known.get(name, torch.ones_like(x)) for name, x in state.items()})
        above = fused_state(_with_states(pairs, weighted), groupings, shares)
        below = fused_state(_with_states(pairs, own), groupings, shares)
        known = self.precisions[0]
        return {
            name: torch.where(below[name].abs() > LEAST, above[name] / below[name], plain[name]) if name in known else x
            for name, x in plain.items()
        }


def merge_options(kind: MergeKind, given: Mapping[str, Any]) -> dict[str, float]:
    """The options of a kind with its defaults. Raises :class:`MethodError` for an unknown one or a bad value."""
    known = MERGE_OPTIONS[kind]
    for key, value in given.items():
        if key not in known:
            raise MethodError(
                f"merging by {kind!r} has no option {key!r}; {nearest(key, known) if known else 'it has none'}"
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise MethodError(f"{key} must be a positive number. Got {value!r}")
    chosen = {**known, **given}
    if chosen.get("density", 1.0) > 1:
        raise MethodError(
            f"density is the part of the entries that stay, above 0 and at most 1. Got {chosen['density']}"
        )
    return chosen


def reference_states(pairs: Correspondence) -> list[dict[str, Tensor]]:
    """The parents' tensors that the graphs share, by the reference's names."""
    states = [parent.program.module.state_dict() for parent in pairs.parents]
    return [
        {name: state[theirs] for name, theirs in names.items() if theirs in state and state[theirs].is_floating_point()}
        for state, names in zip(states, pairs.names, strict=True)
    ]


def _with_states(pairs: Correspondence, states: Sequence[State]) -> Correspondence:
    """The correspondence with other tensors in the parents."""
    parents = []
    for parent, names, state in zip(pairs.parents, pairs.names, states, strict=True):
        module = with_state(parent.program.module, {names[name]: x for name, x in state.items()})
        parents.append(replace(parent, program=replace(parent.program, module=module)))
    return replace(pairs, parents=tuple(parents))


def _differences(pairs: Correspondence, base: State) -> list[dict[str, Tensor]]:
    """The task vectors. Raises :class:`MethodError` where the base model is of another shape."""
    found = []
    trained = set(parameter_names(pairs))  # running statistics are averaged: a variance must not be extrapolated
    for parent, whole in zip(pairs.parents, reference_states(pairs), strict=True):
        state = {name: x for name, x in whole.items() if name in trained}
        for name, x in state.items():
            if name not in base or base[name].shape != x.shape:
                shape = list(base[name].shape) if name in base else "missing"
                raise MethodError(
                    f"the base model must have the parents' shapes, but {name} is {shape} there and {list(x.shape)} in "
                    f"{parent.program.name}"
                )
        found.append({name: x - base[name] for name, x in state.items()})
    return found


def _task(
    pairs: Correspondence, base: State, shares: Sequence[float], options: Mapping[str, float]
) -> list[dict[str, Tensor]]:
    factor = options["scale"] * sum(share > 0 for share in shares)
    return [
        {name: base[name] + factor * change for name, change in changes.items()}
        for changes in _differences(pairs, base)
    ]


def _ties(
    pairs: Correspondence, base: State, shares: Sequence[float], options: Mapping[str, float]
) -> list[dict[str, Tensor]]:
    trimmed = [_trimmed(changes, options["density"]) for changes in _differences(pairs, base)]
    merged = {}
    for name in trimmed[0]:
        stacked = torch.stack([changes[name] for changes in trimmed])
        weight = torch.tensor(shares, dtype=stacked.dtype).reshape(-1, *[1] * (stacked.ndim - 1))
        sign = (weight * stacked).sum(0).sign()
        agrees = ((stacked.sign() == sign) & (stacked != 0)).to(stacked.dtype) * weight
        mean = (agrees * stacked).sum(0) / agrees.sum(0).clamp(min=LEAST)
        merged[name] = base[name] + options["scale"] * mean
    return [merged for _ in trimmed]


def _trimmed(changes: Mapping[str, Tensor], density: float) -> dict[str, Tensor]:
    """The changes without all but the largest ``density`` of their entries, over all tensors together."""
    if density >= 1:
        return dict(changes)
    sizes = torch.cat([change.abs().flatten().double() for change in changes.values()])
    keep = max(1, round(density * len(sizes)))
    bound = float(sizes.kthvalue(len(sizes) - keep + 1).values)
    return {name: torch.where(change.abs().double() >= bound, change, 0.0) for name, change in changes.items()}
