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
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from fxfuse.passes.descent import adam, descend, falling
from fxfuse.passes.fitting import FitPlan, Store
from fxfuse.passes.keeping import Best, Keeper, Tensors, copied, exchange, optimizer_tensors, put, restore_optimizer
from fxfuse.passes.objective import Lesson, Objective, make_objective
from fxfuse.passes.teacher import Teacher
from fxfuse.progress import Progress
from fxfuse.samples import Samples, hold_out

CHECKS = 10
"""How often the held-out objective is looked at."""
BLOCK = 2
"""So many batches are drawn at a time."""
WARM = 0.2
"""The share of the steps in which the learning rate rises: Adam's first steps, taken at full size, would undo a state
that is good already."""
HORIZON = 6
"""The running mean of the weights forgets within about a sixth of the steps."""
TRIAL = 0.2
"""The share of the steps after which two candidates are compared."""
KEY = "joint"
FUSED = "fused"


@dataclass(frozen=True, slots=True)
class JointReport:
    """The held-out objective before and after, and the share of the answer in it. Where the former is no number there
    are no steps."""

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
    if plan.joint_steps == 0 or not any(p.requires_grad for p in fused.parameters()):
        return None
    levels = teacher.pairs.reference.partition.levels
    inner = [level.boundary for level in levels if teacher.can_target(level.boundary)]
    nodes = dict.fromkeys([n for n in inner if n not in teacher.outputs] + list(teacher.outputs))
    objective = make_objective(fused, tuple(nodes), teacher, samples, device)
    objective.graph.eval()
    run = _Run(fused, objective, plan, seed, store)
    run.choose(starts or {})
    return run.go(progress)


def echoes(parents: int) -> int:
    """How often a batch is gone through (data echoing, Choi et al., 2019). The parents, of whom two cost as much as the
    training itself, answer it once: the more there are, the less often they are asked."""
    return max(2, round(math.sqrt(2 * parents)))


class _Run:
    """One optimisation with its state: what is kept of it suffices to go on bit for bit."""

    def __init__(
        self, fused: fx.GraphModule, objective: Objective, plan: FitPlan, seed: int, store: Store | None
    ) -> None:
        self.fused, self.objective, self.plan, self.seed = fused, objective, plan, seed
        self.keeper = Keeper(store, KEY)
        self.parameters = {name: p for name, p in fused.named_parameters() if p.requires_grad}
        count = len(objective.samples)
        self.train, held = hold_out(count, plan.held, torch.Generator().manual_seed(seed))
        # What the levels change adds up behind one another, so each may change the less the more there are; by the
        # root of their number, since the changes are not all in one direction.
        self.lr = plan.lr * math.sqrt(2 / max(2, len(objective.nodes)))
        self.steps = plan.joint_steps
        self.round = BLOCK * echoes(len(objective.parents))
        self.judges = self._judges(held if len(held) else self.train)
        self.start = FUSED
        self.starts: dict[str, float] = {}
        self._begin()

    def _begin(self) -> None:
        """Start anew from the present state, which is the first and the best one."""
        self.optimizer = adam(list(self.parameters.values()), self.lr)
        self.generator = torch.Generator().manual_seed(self.seed + 1)
        self.queue = self.train[:0]
        self.block: list[Lesson] = []
        self.mean = copied(self.parameters)
        self.first = self._judge()
        self.best = Best(self.first, copied(self.parameters))
        self.done = 0

    # -------------------------------------------------------------------------------------------- where to begin

    def choose(self, starts: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Begin with the fused state or, where it does better on trial, with the best deciding of ``starts``.

        The error of the answer at the start would favour the least confident parent, the share of decisions alone the
        one that is right by confidence: only training shows which comes closer.
        """
        states: dict[str, Mapping[str, Tensor]] = {FUSED: copied(self.fused.state_dict()), **starts}
        if self.plan.max_seconds is not None:
            self._pace(self.plan.max_seconds)
        for name, state in states.items():
            self.fused.load_state_dict(state)
            self.starts[name] = self._disagreement()
        rival = min(self.starts, key=self.starts.__getitem__)
        if rival != FUSED:
            errors = {name: self._trial(states[name], name) for name in (FUSED, rival)}
            self.start = min(errors, key=errors.__getitem__)
        self.fused.load_state_dict(states[self.start])
        self._begin()

    def _trial(self, state: Mapping[str, Tensor], name: str) -> float:
        """The held-out error of the answer after the first part of the steps from a state."""
        self.fused.load_state_dict(state)
        self.start = name
        self._begin()
        for _ in range(round(TRIAL * self.steps)):
            self._step()
        return self._judge_mean()[1]

    # -------------------------------------------------------------------------------------------- judging

    def _judges(self, held: Tensor) -> list[Lesson]:
        """Held-out batches with their targets: the samples as they are and, where they are few, transformed too."""
        generator = torch.Generator().manual_seed(7)
        size = self.plan.batch_size
        kinds = tuple(k for k in self.plan.transformations if k != "mix")
        copies = 3 if kinds and len(held) < 4 * size else 0
        chunks = torch.split(held[: 8 * size], size)
        plain = [self.objective.lesson(chunk) for chunk in chunks]
        return plain + [self.objective.lesson(chunk, kinds, generator) for _ in range(copies) for chunk in chunks]

    def _disagreement(self) -> float:
        """How often the network decides otherwise than the wanted answer, on the held-out batches."""
        with torch.no_grad():
            found = [self.objective.disagreement(lesson) for lesson in self.judges]
        return sum(found) / len(found)

    def _judge(self) -> tuple[float, float]:
        """The held-out objective, and the answer's part of it."""
        total = answer = 0.0
        with torch.no_grad():
            for lesson in self.judges:
                a, b = self.objective.losses(lesson)
                total, answer = total + float(a + b), answer + float(b)
        return total / len(self.judges), answer / len(self.judges)

    def _judge_mean(self) -> tuple[float, float]:
        """The same, with the running mean of the weights."""
        exchange(self.parameters, self.mean)
        score = self._judge()
        exchange(self.parameters, self.mean)
        return score

    def _put(self, values: Tensors) -> None:
        put(self.parameters, values)

    # -------------------------------------------------------------------------------------------- training

    def go(self, progress: Progress) -> JointReport:
        """All steps that are still to be done."""
        start = time.monotonic()
        self._load()
        if not math.isfinite(self.first[-1]):
            return self._report(0)
        steps = self.steps
        every = max(1, steps // CHECKS // self.round) * self.round
        with progress.start(steps, "fit all levels together") as bar:
            bar.advance(self.done)
            while self.done < steps:
                self._step()
                bar.advance()
                if self.done % every == 0 or self.done == steps:
                    self.best.offer(self._judge_mean(), self.mean, self.done)
                    if self.plan.max_seconds is not None and time.monotonic() - start > self.plan.max_seconds:
                        break
                    whole = self.done % self.round == 0  # the block under way is not kept
                    if whole and self.done < steps and self.keeper.due():
                        self._save()
        self.optimizer.zero_grad()  # gradients take as much memory as the weights
        self._put(self.best.state)
        self.fused.eval()
        return self._report(self.done)

    def _report(self, steps: int) -> JointReport:
        (before, answer_before), (after, answer_after) = self.first, self.best.figures
        return JointReport(before, after, answer_before, answer_after, steps, self.start, self.starts)

    def _pace(self, limit: float) -> None:
        """Plan no more steps than there is time for, so that the learning rate has fallen when the time is over. The
        steps that tell are not kept."""
        tried = min(self.steps, self.round)
        start = time.monotonic()
        for _ in range(tried):
            self._step()
        possible = int(limit * tried / max(time.monotonic() - start, 1e-9))
        self.steps = max(1, min(self.steps, possible))

    def _step(self) -> None:
        steps = self.steps
        if self.done % self.round == 0:
            self.block = [self._fresh() for _ in range(BLOCK)]
        inner, answer = self.objective.losses(self.block[self.done % BLOCK])
        # A parent's neurons have an order of their own, and need not become the means of all parents' neurons.
        fade = 1 - self.done / steps if self.start == FUSED else 0.0
        warm = min(1.0, (self.done + 1) / (WARM * steps))
        descend(self.optimizer, fade * inner + answer, self.lr * warm * falling("cosine", self.done / steps))
        with torch.no_grad():
            now = [p.detach() for p in self.parameters.values()]
            torch._foreach_lerp_(list(self.mean.values()), now, min(1.0, HORIZON / steps))
        self.done += 1

    def _fresh(self) -> Lesson:
        """The next batch of samples, transformed, with the parents' targets for it."""
        size = min(self.plan.joint_batch, len(self.train))
        if len(self.queue) < size:
            again = self.train[torch.randperm(len(self.train), generator=self.generator)]
            self.queue = torch.cat([self.queue, again])
        chunk, self.queue = self.queue[:size], self.queue[size:]
        return self.objective.lesson(chunk, self.plan.transformations, self.generator)

    # -------------------------------------------------------------------------------------------- resuming

    def _save(self) -> None:
        self.keeper.save(
            {
                "done": self.done,
                "steps": self.steps,
                "first": self.first,
                "best": self.best.figures,
                "at": self.best.at,
            },
            draws={"generator": self.generator.get_state(), "queue": self.queue},
            now=self.parameters,
            mean=self.mean,
            best=self.best.state,
            optimizer=optimizer_tensors(self.optimizer),
        )

    def _load(self) -> None:
        saved = self.keeper.load()
        if saved is None:
            return
        meta, part = saved
        draws = part("draws")
        self.generator.set_state(draws["generator"])
        self.queue = draws["queue"]
        self._put(part("now"))
        put(self.mean, part("mean"))
        put(self.best.state, part("best"))
        restore_optimizer(self.optimizer, part("optimizer"))
        self.first = tuple(meta["first"])
        self.best.figures, self.best.at = tuple(meta["best"]), meta["at"]
        self.done, self.steps = meta["done"], meta["steps"]
