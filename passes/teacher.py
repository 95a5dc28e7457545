"""What a fused network is fitted to: the parents' values, merged through the groupings, and their joint answer.

At a boundary in neuron space ``a`` the target is ``T = sum_p M_a,p A_p``. The error of a fused value ``Y`` is the
share of the target's variation that it misses, neurons weighted by the importance that was grouped into them::

    e = sum_j m_j ||y_j - t_j||^2 / sum_j m_j ||t_j - mean(t_j)||^2

At an output the parents are combined as an ensemble: the weighted mean of their class probabilities (``head =
probabilities``) or of their raw outputs (``logits``), or the labels take their place. Where parents know different
classes, :mod:`fxfuse.passes.label_ensemble` combines them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from fxfuse.errors import MethodError
from fxfuse.label_space import class_axis, known
from fxfuse.layouts import merge_tensors, spaces_in
from fxfuse.matrices import dense
from fxfuse.passes.augment import Mixture
from fxfuse.passes.correspond import Correspondence
from fxfuse.passes.label_ensemble import LabelEnsemble
from fxfuse.passes.stretch import at_shape, traced_batch
from fxfuse.passes.subgraph import output_nodes
from fxfuse.types import Grouping, Leaf, SpaceStatistics

TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Teacher:
    """Merges parents' values into targets and measures how far a fused value is from them."""

    pairs: Correspondence
    groupings: Mapping[int, Grouping]
    weights: tuple[float, ...]
    head: str
    mass: Mapping[int, Tensor]
    """Importance per fused neuron of every space that is not inside another, mean 1."""
    outputs: tuple[str, ...] = field(default=())
    union: LabelEnsemble | None = None
    """How parents with different classes are combined, if they have."""

    def target(self, node: str, values: Sequence[Tensor]) -> Tensor:
        """The merged value of ``node`` from the parents' values of it."""
        axes = []
        for parent, value in zip(self.pairs.parents, values, strict=True):
            meaning = parent.axes.values[node]
            axes.append(at_shape(meaning, value.shape, traced_batch(parent.axes, parent.program.module.graph)))
        return merge_tensors(values, axes, self.pairs.reference.axes.spaces, self.groupings, self.weights)

    def can_target(self, node: str) -> bool:
        """Whether the meaning of a value is known dimension by dimension, so that parents' values can be merged."""
        return node in self.pairs.reference.axes.values

    def neuron_weight(self, node: str, value: Tensor) -> Tensor:
        """Importance per fused neuron, shaped to broadcast against ``value``; ones where neurons are composite."""
        meaning = self.pairs.reference.axes.values[node]
        for dim, layout in enumerate(meaning.dims):
            if isinstance(layout, Leaf) and layout.space is not None and layout.space in self.mass:
                shape = [1] * value.ndim
                shape[dim] = layout.size
                return self.mass[layout.space].to(value.device, value.dtype).reshape(shape)
        return torch.ones([1] * value.ndim, device=value.device, dtype=value.dtype)

    def error(self, node: str, value: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """The share of the target's variation that ``value`` misses (module docstring's formula)."""
        centred = target - target.mean(self._sample_dims(node, target), keepdim=True)
        scale = (weight * centred.square()).mean().clamp_min(TINY)
        return (weight * (value - target).square()).mean() / scale

    def _sample_dims(self, node: str, value: Tensor) -> list[int]:
        """The dimensions of a value that do not index neurons."""
        meaning = self.pairs.reference.axes.values[node]
        others = [d for d, layout in enumerate(meaning.dims) if not spaces_in(layout)]
        return others or list(range(value.ndim))

    def answer(self, values: Sequence[Tensor], labels: Tensor | None = None, mixture: Mixture | None = None) -> Tensor:
        """The combined answer of the parents at one output, or the labels as probabilities: zeros for a sample without
        one. Raises ``MethodError`` where there are no labels or no classes, ``DataError`` for labels out of range."""
        axis = class_axis(values[0].shape)
        union = self.union if self.union is not None and self.union.fits(values) else None
        if self.head == "labels":
            if labels is None or axis is None:
                raise MethodError("head 'labels' needs labelled calibration data and an output with classes")
            classes = values[0].shape[axis] if union is None else union.labels.size
            hard = one_hot(labels, classes, axis).to(values[0].dtype)
            return hard if mixture is None else mixture.apply(hard)
        if union is not None:
            return union.logits(values) if self.head == "logits" else union.probabilities(values)
        if self.head == "logits" or axis is None:
            return sum((w * v for w, v in zip(self.weights, values, strict=True)), torch.zeros_like(values[0]))
        parts = [w * probabilities(v, axis) for w, v in zip(self.weights, values, strict=True)]
        return sum(parts, torch.zeros_like(parts[0]))

    def answer_loss(self, given: Tensor, wanted: Tensor) -> Tensor:
        """How far the fused output is from the combined answer: KL divergence from it to the fused probabilities (mean
        over samples and positions), or the relative squared error where there are no classes or logits are wanted."""
        axis = class_axis(given.shape)
        if self.head == "logits" or axis is None:
            return relative_error(given, wanted)
        log_given = log_probabilities(given, axis)
        divergence = (torch.xlogy(wanted, wanted) - wanted * log_given).sum(axis)
        return self._mean(divergence, wanted, axis)

    def disagreement(self, given: Tensor, wanted: Tensor) -> Tensor:
        """How often the fused output's class is not that of the combined answer; without classes the answer's loss."""
        axis = class_axis(given.shape)
        if axis is None:
            return self.answer_loss(given, wanted)
        return self._mean((given.argmax(axis) != wanted.argmax(axis)).float(), wanted, axis)

    def _mean(self, errors: Tensor, wanted: Tensor, axis: int) -> Tensor:
        """The mean over samples and positions; those without a label do not count."""
        if self.head != "labels":
            return errors.mean()
        there = wanted.sum(axis) > 0
        if bool(there.all()):
            return errors.mean()
        return errors[there].sum() / there.sum().clamp_min(1)

    def towards_labels(self) -> "Teacher":
        """The same, with labels in place of the parents' answer."""
        return replace(self, head="labels")


def make_teacher(
    pairs: Correspondence,
    groupings: Mapping[int, Grouping],
    weights: tuple[float, ...],
    statistics: Mapping[int, SpaceStatistics],
    head: str,
    device: torch.device,
    union: LabelEnsemble | None = None,
) -> Teacher:
    """A teacher whose neuron masses come from the statistics' importances (uniform where there are none). Its matrices
    lie on ``device`` in single precision, where they meet the values."""
    mass: dict[int, Tensor] = {}
    for space in pairs.reference.axes.spaces:
        found = statistics.get(space.id)
        if space.outer is not None or found is None or found.importance.sum() <= 0:
            continue
        if len(found.importance) != sum(found.widths):  # a space with blocks of its own
            continue
        total = torch.zeros(space.size, dtype=torch.float64)
        for unmerge, part in zip(
            groupings[space.id].unmerge, torch.split(found.importance.cpu(), list(found.widths)), strict=True
        ):
            total += dense(unmerge).to(torch.float64).clamp_min(0).T @ part.to(torch.float64)
        if total.sum() > 0:
            mass[space.id] = total / total.mean()
    outputs = tuple(node.name for node in output_nodes(pairs.reference.program.module.graph))
    near = {number: _near(grouping, device) for number, grouping in groupings.items()}
    return Teacher(pairs, near, weights, head, mass, outputs, union)


def _near(grouping: Grouping, device: torch.device) -> Grouping:
    merge, unmerge = (
        tuple(matrix.to(device, torch.float32) for matrix in side) for side in (grouping.merge, grouping.unmerge)
    )
    return replace(grouping, merge=merge, unmerge=unmerge)


def one_hot(labels: Tensor, classes: int, axis: int) -> Tensor:
    """Labels as probabilities along a new ``axis``; zeros where there is no label."""
    there = known(labels, classes)
    hard = F.one_hot(labels.long().where(there, 0), classes) * there.unsqueeze(-1)
    return hard.movedim(-1, axis)


def probabilities(value: Tensor, axis: int) -> Tensor:
    """Class probabilities of an output, which may be probabilities already."""
    return value if _normalised(value, axis) else value.softmax(axis)


def log_probabilities(value: Tensor, axis: int) -> Tensor:
    """Their logarithms."""
    return value.clamp_min(TINY).log() if _normalised(value, axis) else value.log_softmax(axis)


def _normalised(value: Tensor, axis: int) -> bool:
    total = value.detach().sum(axis)
    return bool((value.detach() >= 0).all()) and bool((total - 1).abs().max() < 1e-3)


def relative_error(value: Tensor, target: Tensor) -> Tensor:
    """Squared error over the target's variation across samples."""
    centred = target - target.mean(0, keepdim=True)
    return (value - target).square().mean() / centred.square().mean().clamp_min(TINY)
