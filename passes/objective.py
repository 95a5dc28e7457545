"""What a whole network is trained towards, batch by batch: the parents' values, the targets made of them, the losses.

Targets are recomputed from the parents for every batch, on the samples as they are then, so samples may be transformed
at will and nothing is stored (:mod:`fxfuse.passes.teacher` says what targets and losses are).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxfuse.device import autocast
from fxfuse.passes.augment import Mixture, Transformation, transform
from fxfuse.passes.observe import placed
from fxfuse.passes.subgraph import capture
from fxfuse.passes.teacher import Teacher
from fxfuse.samples import Samples


@dataclass(frozen=True, slots=True)
class Lesson:
    """One batch: the inputs on the device, and what each of the objective's nodes should give for them."""

    inputs: tuple[Tensor, ...]
    targets: list[Tensor]


@dataclass(frozen=True, slots=True)
class Objective:
    """The errors of ``graph``, which gives the values of ``nodes``, against targets from ``parents``, which give the
    same nodes' values."""

    graph: fx.GraphModule
    parents: tuple[fx.GraphModule, ...]
    teacher: Teacher
    nodes: tuple[str, ...]
    samples: Samples
    device: torch.device

    def lesson(
        self, indices: Tensor, kinds: Sequence[Transformation] = (), generator: torch.Generator | None = None
    ) -> Lesson:
        """The samples at ``indices``, transformed by draws from ``generator``, with their targets."""
        inputs, labels = self.samples.take(indices)
        inputs = tuple(x.to(self.device) for x in inputs)
        labels = None if labels is None else labels.to(self.device)
        mixture: Mixture | None = None
        if kinds:
            assert generator is not None
            inputs, mixture = transform(inputs, kinds, generator)
        return Lesson(inputs, self._targets(inputs, labels, mixture))

    def _targets(self, inputs: Sequence[Tensor], labels: Tensor | None, mixture: Mixture | None) -> list[Tensor]:
        if self.teacher.head == "labels" and set(self.nodes) <= set(self.teacher.outputs):
            values = self._shapes()
        else:
            with torch.no_grad(), autocast(self.device):
                values = [parent(*inputs) for parent in self.parents]
        targets = []
        for k, node in enumerate(self.nodes):
            own = [value[k].float() for value in values]
            is_answer = node in self.teacher.outputs
            targets.append(self.teacher.answer(own, labels, mixture) if is_answer else self.teacher.target(node, own))
        return targets

    def _shapes(self) -> list[tuple[Tensor, ...]]:
        """What the parents give, without its numbers: labels need no more."""
        values = [[parent.axes.values[node] for node in self.nodes] for parent in self.teacher.pairs.parents]
        return [tuple(torch.empty([x.size for x in v.dims], device="meta") for v in own) for own in values]

    def losses(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """Mean error of the levels, and of the answers; zero where there are none."""
        inner, answers = [], []
        for node, value, target in zip(self.nodes, self._given(lesson), lesson.targets, strict=True):
            if node in self.teacher.outputs:
                answers.append(self.teacher.answer_loss(value.float(), target))
            else:
                weight = self.teacher.neuron_weight(node, target)
                inner.append(self.teacher.error(node, value.float(), target, weight))
        zero = torch.zeros((), device=self.device)
        return (torch.stack(inner).mean() if inner else zero), (torch.stack(answers).mean() if answers else zero)

    def disagreement(self, lesson: Lesson) -> float:
        """The mean over outputs of the share of decisions that are not the wanted answer's."""
        triples = zip(self.nodes, self._given(lesson), lesson.targets, strict=True)
        found = [self.teacher.disagreement(v.float(), t) for node, v, t in triples if node in self.teacher.outputs]
        return float(torch.stack(found).mean()) if found else 0.0

    def _given(self, lesson: Lesson) -> tuple[Tensor, ...]:
        with autocast(self.device):
            values: tuple[Tensor, ...] = self.graph(*lesson.inputs)
        return values


def make_objective(
    network: fx.GraphModule, nodes: Sequence[str], teacher: Teacher, samples: Samples, device: torch.device
) -> Objective:
    """The objective of a network that lies on ``device``, over ``nodes``; its parameters are the network's own."""
    parents = tuple(capture(placed(p.program.module, device), nodes).eval() for p in teacher.pairs.parents)
    return Objective(capture(network, nodes), parents, teacher, tuple(nodes), samples, device)
