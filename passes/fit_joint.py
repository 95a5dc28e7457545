"""Fit all levels together, on fresh transformed samples, with targets recomputed from the parents at every step.

The loss is the error of the answer plus the mean of the levels' errors (:mod:`fxfuse.passes.teacher`), whose weight
fades from one to zero: the fused network is held to the parents' merged values at first, and its parts then learn to
make up for what those values cannot all be at once. Nothing is stored but two mini-batches. What counts is a running
mean of the weights (Polyak and Juditsky, 1992), which is rid of most of the steps' noise: its answers on held-out
samples are looked at regularly and the best is kept, so the network never ends worse than it began by that measure.

It may begin elsewhere: where a parent has the target's widths and decides on held-out samples like all parents together
more often than the fused network does, both are trained for a part of the steps, the parent towards the answer alone,
and the one whose answers are then the closer on held-out samples goes on.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from fxfuse.device import autocast
from fxfuse.passes.augment import Mixture, transform
from fxfuse.passes.fit_gradient import adam
from fxfuse.passes.fitting import FitPlan, Store
from fxfuse.passes.observe import placed
from fxfuse.passes.subgraph import capture
from fxfuse.passes.teacher import Teacher
from fxfuse.progress import Progress
from fxfuse.samples import Samples
from fxfuse.types import Batch

CHECKS = 10
"""How often the held-out objective is looked at."""
BLOCK, ECHO = 2, 2
"""So many batches are drawn at a time, and gone through so often (data echoing, Choi et al., 2019): the parents, who
cost as much as the training itself, answer each of them once."""
WARM = 0.2
"""The share of the steps in which the learning rate rises: Adam's first steps, taken at full size, would undo a state
that is good already."""
HORIZON = 6
"""The running mean of the weights forgets within about a sixth of the steps."""
TRIAL = 0.2
"""The share of the steps after which two candidates are compared."""
SAVE_SECONDS = 20.0
KEY = "joint"
FUSED = "fused"


@dataclass(frozen=True, slots=True)
class JointReport:
    """The held-out objective before and after, and the share of the answer in it."""

    before: float
    after: float
    answer_before: float
    answer_after: float
    steps: int
    start: str = FUSED
    """Whose weights the training began with: the fused ones, or those of the parent named here."""
    starts: Mapping[str, float] = field(default_factory=dict)
    """How often each candidate to begin with decides otherwise than the wanted answer, on held-out samples (where
    there are no classes: the error of its answer)."""


@dataclass(slots=True)
class _Objective:
    """Targets from the parents and the loss of the fused network against them, for one batch."""

    fused: fx.GraphModule
    parents: list[fx.GraphModule]
    teacher: Teacher
    nodes: tuple[str, ...]
    device: torch.device

    def targets(self, inputs: Sequence[Tensor], labels: Tensor | None, mixture: Mixture | None) -> list[Tensor]:
        with torch.no_grad(), autocast(self.device):
            values = [parent(*inputs) for parent in self.parents]
        out = []
        for k, node in enumerate(self.nodes):
            own = [value[k].float() for value in values]
            out.append(
                self.teacher.answer(own, labels, mixture)
                if node in self.teacher.outputs
                else self.teacher.target(node, own)
            )
        return out

    def losses(self, inputs: Sequence[Tensor], targets: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Mean error of the levels, and of the answers."""
        with autocast(self.device):
            values = self.fused(*inputs)
        inner, answers = [], []
        for node, value, target in zip(self.nodes, values, targets, strict=True):
            if node in self.teacher.outputs:
                answers.append(self.teacher.answer_loss(value.float(), target))
            else:
                weight = self.teacher.neuron_weight(node, target)
                inner.append(self.teacher.error(node, value.float(), target, weight))
        zero = torch.zeros((), device=self.device)
        return (torch.stack(inner).mean() if inner else zero), (torch.stack(answers).mean() if answers else zero)

    def disagreement(self, inputs: Sequence[Tensor], targets: Sequence[Tensor]) -> float:
        """The mean over outputs of the share of decisions that are not the wanted answer's."""
        with autocast(self.device):
            values = self.fused(*inputs)
        pairs = zip(self.nodes, values, targets, strict=True)
        found = [self.teacher.disagreement(v.float(), t) for node, v, t in pairs if node in self.teacher.outputs]
        return float(torch.stack(found).mean()) if found else 0.0


def fit_joint(
    fused: fx.GraphModule,
    teacher: Teacher,
    samples: Samples,
    plan: FitPlan,
    *,
    device: torch.device,
    seed: int,
    progress: Progress,
    store: Store | None = None,
    starts: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> JointReport | None:
    """Train all parameters of ``fused`` in place; ``None`` if the plan has no joint steps.

    ``starts`` are further states of the network to begin with, by name; the one that decides most like the wanted
    answer on held-out samples is taken, the fused one where they are equal.
    """
    parameters = [p for p in fused.parameters() if p.requires_grad]
    if plan.joint_steps == 0 or not parameters:
        return None
    levels = teacher.pairs.reference.partition.levels
    inner = [level.boundary for level in levels if teacher.can_target(level.boundary)]
    nodes = tuple(dict.fromkeys([n for n in inner if n not in teacher.outputs] + list(teacher.outputs)))
    parents = [capture(placed(p.program.module, device), nodes).eval() for p in teacher.pairs.parents]
    objective = _Objective(capture(fused, nodes).eval(), parents, teacher, nodes, device)
    run = _Run(objective, parameters, samples, plan, seed, store)
    run.choose(fused, starts or {})
    return run.go(fused, progress)


class _Run:
    """One optimisation with its state: what is kept of it suffices to go on bit for bit."""

    def __init__(
        self,
        objective: _Objective,
        parameters: list[torch.nn.Parameter],
        samples: Samples,
        plan: FitPlan,
        seed: int,
        store: Store | None,
    ) -> None:
        self.objective, self.parameters, self.samples = objective, parameters, samples
        self.plan, self.store = plan, store
        self.seed = seed
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
        held = min(max(1, round(plan.held * len(samples))), len(samples) - 1) if len(samples) > 1 else 0
        self.train = order[held:]
        # What the levels change adds up behind one another, so each may change the less the more there are.
        self.lr = plan.lr * 2 / max(2, len(objective.nodes))
        self.judges = self._judges(order[:held] if held else order)
        self.start = FUSED
        self.starts: dict[str, float] = {}
        self._begin()

    def _begin(self) -> None:
        """Start anew from the present state, which is the first and the best one."""
        self.optimizer = adam(self.parameters, self.lr)
        self.generator = torch.Generator().manual_seed(self.seed + 1)
        self.queue = self.train[:0]
        self.block: list[tuple[tuple[Tensor, ...], list[Tensor]]] = []
        self.mean = [p.detach().clone() for p in self.parameters]
        self.best = [p.detach().clone() for p in self.parameters]
        self.first = self.best_score = self.judge()
        self.done = 0

    def choose(self, fused: fx.GraphModule, starts: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Begin with the fused state or, where it does better on trial, with the best deciding of ``starts``.

        The error of the answer at the start would favour the least confident parent, the share of decisions alone the
        one that is right by confidence: only training shows which comes closer.
        """
        own = {name: value.clone() for name, value in fused.state_dict().items()}
        states: dict[str, Mapping[str, Tensor]] = {FUSED: own, **starts}
        for name, state in states.items():
            fused.load_state_dict(state)
            self.starts[name] = self._disagreement()
        rival = min(self.starts, key=self.starts.__getitem__)
        if rival != FUSED:
            errors = {name: self._trial(fused, states[name], name) for name in (FUSED, rival)}
            self.start = min(errors, key=errors.__getitem__)
        fused.load_state_dict(states[self.start])
        self._begin()

    def _trial(self, fused: fx.GraphModule, state: Mapping[str, Tensor], name: str) -> float:
        """The held-out error of the answer after the first part of the steps from a state."""
        fused.load_state_dict(state)
        self.start = name
        self._begin()
        for _ in range(round(TRIAL * self.plan.joint_steps)):
            self._step()
        return self._judge_mean()[1]

    def _disagreement(self) -> float:
        """How often the network decides otherwise than the wanted answer, on the held-out batches."""
        with torch.no_grad():
            found = [self.objective.disagreement(inputs, targets) for inputs, targets in self.judges]
        return sum(found) / len(found)

    def _judges(self, held: Tensor) -> list[tuple[tuple[Tensor, ...], list[Tensor]]]:
        """Held-out batches with their targets: the samples as they are and, where they are few, transformed too."""
        generator = torch.Generator().manual_seed(7)
        kinds = tuple(k for k in self.plan.transformations if k != "mix")
        out = []
        for copy in range(1 + (3 if kinds and len(held) < 4 * self.plan.batch_size else 0)):
            for chunk in torch.split(held[: 8 * self.plan.batch_size], self.plan.batch_size):
                inputs, labels = self._batch(chunk)
                if copy:
                    inputs, _ = transform(inputs, kinds, generator)
                out.append((inputs, self.objective.targets(inputs, labels, None)))
        return out

    def _batch(self, indices: Tensor) -> Batch:
        inputs, labels = self.samples.take(indices)
        device = self.objective.device
        return tuple(x.to(device) for x in inputs), None if labels is None else labels.to(device)

    def judge(self) -> tuple[float, float]:
        """The held-out objective, and the answer's part of it."""
        total = answer = 0.0
        with torch.no_grad():
            for inputs, targets in self.judges:
                a, b = self.objective.losses(inputs, targets)
                total, answer = total + float(a + b), answer + float(b)
        return total / len(self.judges), answer / len(self.judges)

    def _judge_mean(self) -> tuple[float, float]:
        """The same, with the running mean of the weights."""
        now = [p.detach().clone() for p in self.parameters]
        self._put(self.mean)
        score = self.judge()
        self._put(now)
        return score

    def _put(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.parameters, values, strict=True):
                parameter.copy_(value)

    def go(self, fused: fx.GraphModule, progress: Progress) -> JointReport:
        """All steps that are still to be done."""
        self._load()
        steps = self.plan.joint_steps
        every = max(1, steps // CHECKS // (BLOCK * ECHO)) * BLOCK * ECHO
        start = saved = time.monotonic()
        with progress.start(steps, "fit all levels together") as bar:
            bar.advance(self.done)
            while self.done < steps:
                self._step()
                bar.advance()
                if self.done % every == 0 or self.done == steps:
                    score = self._judge_mean()
                    if score[1] < self.best_score[1]:
                        self.best_score = score
                        self.best = [mean.clone() for mean in self.mean]
                    now = time.monotonic()
                    if self.plan.max_seconds is not None and now - start > self.plan.max_seconds:
                        break
                    whole = self.done % (BLOCK * ECHO) == 0  # the block under way is not kept
                    if self.store is not None and whole and now - saved > SAVE_SECONDS and self.done < steps:
                        self._save()
                        saved = now
        self._put(self.best)
        fused.eval()
        return JointReport(
            self.first[0], self.best_score[0], self.first[1], self.best_score[1], self.done, self.start, self.starts
        )

    def _step(self) -> None:
        plan = self.plan
        warm = min(1.0, (self.done + 1) / (WARM * plan.joint_steps))
        rate = self.lr * warm * 0.5 * (1 + math.cos(math.pi * self.done / plan.joint_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.done % (BLOCK * ECHO) == 0:
            self.block = [self._fresh() for _ in range(BLOCK)]
        inputs, targets = self.block[self.done % BLOCK]
        inner, answer = self.objective.losses(inputs, targets)
        self.optimizer.zero_grad()
        # A parent's neurons have an order of their own, and need not become the means of all parents' neurons.
        fade = 1 - self.done / plan.joint_steps if self.start == FUSED else 0.0
        (fade * inner + answer).backward()  # type: ignore[no-untyped-call]  # torch's
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.mean, [p.detach() for p in self.parameters], min(1.0, HORIZON / plan.joint_steps))
        self.done += 1

    def _fresh(self) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """The next batch of samples, transformed, with the parents' targets for it."""
        size = min(self.plan.joint_batch, len(self.train))
        if len(self.queue) < size:
            again = self.train[torch.randperm(len(self.train), generator=self.generator)]
            self.queue = torch.cat([self.queue, again])
        chunk, self.queue = self.queue[:size], self.queue[size:]
        inputs, labels = self._batch(chunk)
        mixture = None
        if self.plan.transformations:
            inputs, mixture = transform(inputs, self.plan.transformations, self.generator)
        return inputs, self.objective.targets(inputs, labels, mixture)

    # -------------------------------------------------------------------------------------------- resuming

    def _save(self) -> None:
        assert self.store is not None
        tensors = {"generator": self.generator.get_state(), "queue": self.queue}
        for i, (parameter, mean, best) in enumerate(zip(self.parameters, self.mean, self.best, strict=True)):
            tensors[f"now.{i}"], tensors[f"mean.{i}"], tensors[f"best.{i}"] = parameter, mean, best
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"adam.{i}.{key}"] = torch.as_tensor(value)
        meta = {"done": self.done, "first": self.first, "best": self.best_score}
        self.store.save(KEY, tensors, meta)

    def _load(self) -> None:
        saved = None if self.store is None else self.store.load(KEY)
        if saved is None:
            return
        tensors, meta = saved
        self.generator.set_state(tensors["generator"])
        self.queue = tensors["queue"]
        with torch.no_grad():
            for i, parameter in enumerate(self.parameters):
                parameter.copy_(tensors[f"now.{i}"])
                self.mean[i] = tensors[f"mean.{i}"].to(parameter.device)
                self.best[i] = tensors[f"best.{i}"].to(parameter.device)
                state = {k.split(".", 2)[2]: v for k, v in tensors.items() if k.startswith(f"adam.{i}.")}
                self.optimizer.state[parameter] = {
                    k: v if k == "step" else v.to(parameter.device) for k, v in state.items()
                }
        first, best = meta["first"], meta["best"]
        self.first = (first[0], first[1])  # type: ignore[index]  # as saved above
        self.best_score = (best[0], best[1])  # type: ignore[index]  # as saved above
        self.done = int(meta["done"])  # type: ignore[call-overload]  # as saved above
