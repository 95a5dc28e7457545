"""Networks of several branches: all parents side by side, one chosen per sample, or a fused trunk with branches.

What stands here puts together :mod:`fxfuse.passes.branches` (the graph), :mod:`fxfuse.passes.combine` and
:mod:`fxfuse.passes.routing` (one answer out of several) and :mod:`fxfuse.passes.costs` (where to cut).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from fxfuse.label_space import class_axis
from fxfuse.passes.axes import axes
from fxfuse.passes.branches import Combine, branched
from fxfuse.passes.combine import MeanOutput, MeanProbabilities, UnionLogits, UnionProbabilities
from fxfuse.passes.correspond import Correspondence
from fxfuse.passes.costs import Budget, Cut, choose_cut
from fxfuse.passes.label_ensemble import Completion, LabelEnsemble
from fxfuse.passes.partition import partition
from fxfuse.passes.routing import Choice, find_places, gives_probabilities, make_scorer
from fxfuse.passes.shapes import value_shapes
from fxfuse.samples import Samples
from fxfuse.types import Analysis, Granularity, Grouping


@dataclass(frozen=True, slots=True)
class Branched:
    """A network with branches; ``pairs`` speaks of its trunk's levels alone, which is what there is to fit."""

    module: fx.GraphModule
    pairs: Correspondence
    cut: Cut | None


def members_of(weights: Sequence[float]) -> tuple[int, ...]:
    """The parents that count."""
    return tuple(p for p, weight in enumerate(weights) if weight > 0)


def fused_in_part(
    pairs: Correspondence,
    fused: fx.GraphModule,
    groupings: Mapping[int, Grouping],
    weights: Sequence[float],
    head: str,
    union: LabelEnsemble | None,
    budget: Budget,
) -> Branched:
    """The network with the fewest fused levels that ``budget`` allows; ``fused`` is the fused network.

    Raises :class:`fxfuse.errors.MethodError` for a budget below the fused network's cost.
    """
    members = members_of(weights)
    cut = choose_cut(pairs, budget, members)
    levels = pairs.reference.partition.levels
    if cut.levels == len(levels):
        return Branched(fused, pairs, cut)
    means = _means(pairs, weights, head, union)
    module = branched(pairs, fused, cut.levels, groupings, means, members=members)
    trunk = replace(pairs.reference.partition, levels=levels[: cut.levels])
    parents = tuple(replace(parent, partition=trunk) for parent in pairs.parents)
    return Branched(module, replace(pairs, reference=replace(pairs.reference, partition=trunk), parents=parents), cut)


def side_by_side(
    pairs: Correspondence, weights: Sequence[float], head: str, union: LabelEnsemble | None
) -> fx.GraphModule:
    """The parents' ensemble as one graph: the mean of probabilities as their logarithm, or of logits."""
    combine = _means(pairs, weights, head, union)
    return branched(pairs, pairs.reference.program.module, 0, {}, combine, members=members_of(weights))


def selected(
    pairs: Correspondence,
    weights: Sequence[float],
    router: str,
    samples: Samples | None,
    union: LabelEnsemble | None,
    device: torch.device,
) -> fx.GraphModule:
    """The parents side by side, and for every sample the answers of the one that ``router`` chooses
    (:mod:`fxfuse.passes.routing`)."""
    members = members_of(weights)
    places = find_places(pairs)
    scorer = make_scorer(router, pairs, places, samples, union, members=members, device=device)
    shapes = value_shapes(pairs.reference.program)

    def combine(name: str) -> nn.Module:
        labels = union.labels if union is not None and _has_classes(pairs, name, union) else None
        return Choice(scorer, members, len(shapes[name] or ()), places, labels)

    reference = pairs.reference.program.module
    return branched(pairs, reference, 0, {}, combine, also=places.nodes(), members=members)


def _means(pairs: Correspondence, weights: Sequence[float], head: str, union: LabelEnsemble | None) -> Combine:
    """How every output is combined, as the teacher of a fit does (:mod:`fxfuse.passes.teacher`)."""
    own = [weights[p] for p in members_of(weights)]
    shapes = value_shapes(pairs.reference.program)

    def combine(name: str) -> nn.Module:
        shape = shapes.get(name)
        axis = None if shape is None else class_axis(shape)
        if axis is None or shape is None or shape[axis] == 1 or (len(own) == 1 and union is None):
            return MeanOutput(own)
        normalised = gives_probabilities(pairs.parents[0], name)
        if union is not None and _has_classes(pairs, name, union):
            if head == "logits":
                return UnionLogits(Completion(union), axis)
            return UnionProbabilities(Completion(union), axis, normalised)
        return MeanOutput(own) if head == "logits" or normalised else MeanProbabilities(own, axis)

    return combine


def _has_classes(pairs: Correspondence, name: str, union: LabelEnsemble) -> bool:
    """Whether an output of the reference lies over the union of the parents' classes."""
    meaning = pairs.reference.axes.values.get(name)
    if meaning is None:
        return False
    sizes = tuple(layout.size for layout in meaning.dims)
    axis = class_axis(sizes)
    return axis is not None and sizes[axis] == union.labels.size


def analysed(module: fx.GraphModule, like: Analysis, granularity: Granularity) -> Analysis:
    """What the compiler finds out about a graph that it has made itself."""
    program = replace(like.program, module=module)
    meaning = axes(program)
    return Analysis(program, meaning, partition(program, meaning, granularity))
