"""Fine-tune a whole network, on labels or on the parents' combined answer: what comes after fusion, on request.

Any optimiser of ``torch.optim``, one learning-rate curve, normalisation in training mode, and the best state by its
loss on held-out samples, looked at after every epoch with running statistics recomputed: a few steps do not bring them
up to the weights. Only the outputs count here; the levels' own targets belong to the fits before
(:mod:`fxfuse.passes.fit_joint`). The same function trains the control that any such figure needs: the best parent, with
the same samples, steps and optimiser.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx

from fxfuse.errors import DataError, MethodError
from fxfuse.passes.augment import Transformation
from fxfuse.passes.descent import Schedule, descend, falling, make_optimizer
from fxfuse.passes.fitting import Store
from fxfuse.passes.keeping import Best, Keeper, copied, optimizer_tensors, restore_optimizer
from fxfuse.passes.norms import recompute_norms
from fxfuse.passes.objective import make_objective
from fxfuse.passes.teacher import Teacher
from fxfuse.progress import Progress
from fxfuse.samples import Samples, Subset, hold_out

Towards = Literal["ensemble", "labels"]
STATISTICS = 4096
"""So many samples give the running statistics of norms."""


@dataclass(frozen=True, slots=True)
class FinetunePlan:
    """How to fine-tune: ``epochs`` over the samples (0: not at all) with ``optimizer``, a class of ``torch.optim``
    that takes ``lr`` and ``options``; the rate follows ``schedule`` to zero over all steps. ``held`` is the share of
    the samples that only judge; after ``patience`` epochs without progress on them it ends early (``None``: never)."""

    epochs: int = 0
    towards: Towards = "ensemble"
    optimizer: str = "SGD"
    lr: float = 0.01
    options: Mapping[str, Any] = field(default_factory=lambda: {"momentum": 0.9})
    schedule: Schedule = "cosine"
    batch_size: int = 128
    held: float = 0.1
    patience: int | None = None
    transformations: tuple[Transformation, ...] = ()


@dataclass(frozen=True, slots=True)
class FinetuneReport:
    """Held-out loss before and after (of the epoch ``best``, 0 if no epoch was better), and the epochs gone through."""

    before: float
    after: float
    best: int
    epochs: int


def finetune(
    module: fx.GraphModule,
    teacher: Teacher,
    samples: Samples,
    plan: FinetunePlan,
    *,
    device: torch.device,
    seed: int,
    progress: Progress,
    name: str = "fused",
    store: Store | None = None,
) -> FinetuneReport:
    """Train all parameters of ``module``, a graph with the target's outputs, in place; it ends in evaluation mode.

    Raises ``MethodError`` for an optimiser that cannot be made, and for labels that are wanted and not there.
    """
    if plan.towards == "labels":
        if not samples.labelled:
            raise MethodError("fine-tuning on labels needs labelled calibration data; give labels, or take 'ensemble'")
        teacher = teacher.towards_labels()
    return _Run(module, teacher, samples, plan, device, seed, name, store).go(progress)


class _Run:
    """One optimisation with its state, saved between epochs so that a resumed run ends in the same bits."""

    def __init__(
        self,
        module: fx.GraphModule,
        teacher: Teacher,
        samples: Samples,
        plan: FinetunePlan,
        device: torch.device,
        seed: int,
        name: str,
        store: Store | None,
    ) -> None:
        self.module, self.plan, self.name = module, plan, name
        self.keeper = Keeper(store, f"finetune {name}")
        self.objective = make_objective(module, teacher.outputs, teacher, samples, device)
        parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(plan.optimizer, parameters, plan.lr, plan.options)
        self.generator = torch.Generator().manual_seed(seed + 2)
        self.train, held = hold_out(len(samples), plan.held, torch.Generator().manual_seed(seed))
        self.held = held if len(held) else self.train
        self.done = 0
        self.first = self._judge()
        self.best = Best((self.first,), copied(module.state_dict()))

    def go(self, progress: Progress) -> FinetuneReport:
        """All epochs that are still to be done."""
        self._load()
        epochs = self.plan.epochs
        with progress.start(epochs, f"fine-tune, {self.name}") as bar:
            bar.advance(self.done)
            while self.done < epochs and not self._exhausted():
                self._epoch()
                self._refresh()
                self.done += 1
                self.best.offer((self._judge(),), self.module.state_dict(), self.done)
                bar.advance()
                if self.done == epochs or self.keeper.due():
                    self._save()
        self.optimizer.zero_grad()  # gradients take as much memory as the weights
        self.module.load_state_dict(self.best.state)
        self.module.eval()
        return FinetuneReport(self.first, self.best.figures[-1], self.best.at, self.done)

    def _exhausted(self) -> bool:
        return self.plan.patience is not None and self.done - self.best.at >= self.plan.patience

    def _epoch(self) -> None:
        plan = self.plan
        order = self.train[torch.randperm(len(self.train), generator=self.generator)]
        batches = [b for b in torch.split(order, plan.batch_size) if len(b) > 1 or len(order) == 1]
        self.objective.graph.train(len(order) > 1)  # one sample has no statistics of its own
        for number, batch in enumerate(batches):
            part = (self.done * len(batches) + number) / (plan.epochs * len(batches))
            loss = self._loss(batch, plan.transformations)
            descend(self.optimizer, loss, plan.lr * falling(plan.schedule, part))

    def _refresh(self) -> None:
        """Running statistics of batch norms, from the training samples as they are."""
        if len(self.train) > 1:
            seen = Subset(self.objective.samples, self.train[:STATISTICS])
            with contextlib.suppress(DataError):  # training has gone astray: its loss tells, and the state is not kept
                recompute_norms(self.module, seen, device=self.objective.device, generator=self.generator)

    def _judge(self) -> float:
        """The loss on the held-out samples as they are."""
        self.objective.graph.eval()
        with torch.no_grad():
            parts = [(len(b), float(self._loss(b, ()))) for b in torch.split(self.held, self.plan.batch_size)]
        return sum(n * loss for n, loss in parts) / sum(n for n, _ in parts)

    def _loss(self, batch: Tensor, kinds: Sequence[Transformation]) -> Tensor:
        _, answer = self.objective.losses(self.objective.lesson(batch, kinds, self.generator))
        return answer

    # -------------------------------------------------------------------------------------------- resuming

    def _save(self) -> None:
        self.keeper.save(
            {"done": self.done, "first": self.first, "best": self.best.figures, "at": self.best.at},
            draws={"generator": self.generator.get_state()},
            now=self.module.state_dict(),
            best=self.best.state,
            optimizer=optimizer_tensors(self.optimizer),
        )

    def _load(self) -> None:
        saved = self.keeper.load()
        if saved is None:
            return
        meta, part = saved
        self.generator.set_state(part("draws")["generator"])
        self.module.load_state_dict(part("now"))
        restore_optimizer(self.optimizer, part("optimizer"))
        self.best = Best(tuple(meta["best"]), part("best"), meta["at"])
        self.done, self.first = meta["done"], meta["first"]
