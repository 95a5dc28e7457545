"""What comes out of a fusion: one fused network, a fused trunk with branches, or all parents side by side.

The choice follows from the method, a budget and a router; here the three are checked against one another, and the
network is built as they say.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import fx

from fxfuse.errors import MethodError
from fxfuse.label_space import LabelSpace
from fxfuse.passes.class_spaces import class_spaces
from fxfuse.passes.correspond import Correspondence
from fxfuse.passes.costs import Budget, Cut, choose_cut, parse_budget
from fxfuse.passes.label_ensemble import LabelEnsemble
from fxfuse.passes.merges import Merge
from fxfuse.passes.partial import Branched, analysed, fused_in_part, members_of, selected, side_by_side
from fxfuse.passes.routing import check_router
from fxfuse.passes.similar import widened
from fxfuse.presets import Dial, Form, Preset
from fxfuse.samples import Samples
from fxfuse.types import Analysis, Granularity, Grouping, SpaceStatistics

ROUTER = "confidence"


@dataclass(frozen=True, slots=True)
class Made:
    """The network before any fit. ``pairs`` speaks of the levels that there are to fit."""

    module: fx.GraphModule
    pairs: Correspondence
    branched: bool
    notes: tuple[str, ...] = ()

    def analysis(self, module: fx.GraphModule, reference: Analysis, granularity: Granularity) -> Analysis:
        """The account of ``module``, which is this network after the fit."""
        if not self.branched:
            return replace(reference, program=replace(reference.program, module=module))
        return analysed(module, reference, "block" if isinstance(granularity, tuple) else granularity)


@dataclass(frozen=True, slots=True)
class Chosen:
    """A form, with what it needs to know; ``stated`` is the budget as the user wrote it."""

    form: Form
    budget: Budget | None = None
    stated: float | str | None = None
    router: str | None = None
    dial: Dial = "levels"

    def check(self, pairs: Correspondence, shares: tuple[float, ...]) -> None:
        """Raise :class:`MethodError` for a budget below the smallest possible network, before any work is done."""
        if self.budget is not None:
            choose_cut(pairs, self.budget, members_of(shares))

    @property
    def widens(self) -> bool:
        """Whether a budget is spent on neurons."""
        return self.budget is not None and self.dial == "neurons"

    def widened(
        self,
        pairs: Correspondence,
        statistics: Mapping[int, SpaceStatistics],
        shares: tuple[float, ...],
        classes: LabelSpace | None,
    ) -> tuple[Correspondence, tuple[str, ...]]:
        """The parents with a target as wide as the budget allows, which is spent on neurons, and what was done."""
        if self.budget is None:
            return pairs, ()
        fixed = () if classes is None else class_spaces(pairs.reference, classes.size)
        wide, found = widened(pairs, statistics, shares, self.budget, fixed=fixed)
        note = (
            f"{found.apart} neurons stay by themselves, those whose groups miss more than {found.threshold:.3g} of "
            f"their energy: {found.cost:,} {self.budget.unit} where {found.allowed:,.0f} are allowed (one network "
            f"{found.least:,})"
        )
        return wide, (note,)

    def build(
        self,
        pairs: Correspondence,
        groupings: Mapping[int, Grouping],
        shares: tuple[float, ...],
        head: str,
        union: LabelEnsemble | None,
        samples: Samples | None,
        device: torch.device,
        merge: Merge,
    ) -> Made:
        """The network of this form. Raises :class:`MethodError` where a budget is too small or a router cannot be."""
        if self.form == "ensemble":
            return Made(side_by_side(pairs, shares, head, union), _nothing_to_fit(pairs), True)
        if self.form == "select":
            module = selected(pairs, shares, self.router or ROUTER, samples, union, device)
            return Made(module, _nothing_to_fit(pairs), True)
        fused = merge.apply(pairs, groupings, shares)
        if self.budget is None or self.dial == "neurons":
            return Made(fused, pairs, False)
        made = fused_in_part(pairs, fused, groupings, shares, head, union, self.budget)
        branched = made.module is not fused
        return Made(made.module, made.pairs, branched, (_cut_note(made, self.budget),))


def choose_form(preset: Preset, method: str, budget: float | str | None, router: str | None) -> Chosen:
    """The form that a method has with this budget and router. Raises :class:`MethodError` where they do not go
    together, for a budget that cannot be read and an unknown router."""
    if router is not None:
        check_router(router)
        if preset.form != "select":
            raise MethodError(f"method {method!r} chooses no parent, so it takes no router; take method 'select'.")
    if budget is not None and preset.form != "fused":
        raise MethodError(f"method {method!r} fuses nothing, so it takes no budget; take method 'partial'.")
    if preset.form != "fused":
        return Chosen(preset.form, router=(router or ROUTER) if preset.form == "select" else None)
    stated = preset.budget if budget is None else budget
    return Chosen("fused") if stated is None else Chosen("fused", parse_budget(stated), stated, dial=preset.dial)


def _nothing_to_fit(pairs: Correspondence) -> Correspondence:
    none = replace(pairs.reference.partition, levels=())
    return replace(pairs, reference=replace(pairs.reference, partition=none))


def _cut_note(made: Branched, budget: Budget) -> str:
    cut: Cut | None = made.cut
    assert cut is not None
    return (
        f"{cut.levels} levels are fused and the others are the parents' own, side by side: {cut.cost:,} {budget.unit} "
        f"where {cut.allowed:,.0f} are allowed (all fused {cut.fused:,}, the ensemble {cut.ensemble:,})"
    )
