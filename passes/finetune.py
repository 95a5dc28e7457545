"""Fine-tune a whole network, on labels or on the parents' combined answer: what comes after fusion, on request.

Any optimiser of ``torch.optim``, one learning-rate curve, normalisation in training mode, and the best state by its
loss on held-out samples, looked at after every epoch with running statistics recomputed: a few steps do not bring them
up to the weights. Only the outputs count here; the levels' own targets belong to the fits before
(:mod:`fxfuse.passes.fit_joint`). The same function trains the control that any such figure needs: the best parent, with
the same samples, steps and optimiser.
"""

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx

from fxfuse.device import autocast
from fxfuse.errors import DataError, MethodError, nearest
from fxfuse.passes.augment import Mixture, Transformation, transform
from fxfuse.passes.fitting import Store
from fxfuse.passes.observe import placed
from fxfuse.passes.repair import recompute_norms
from fxfuse.passes.subgraph import capture
from fxfuse.passes.teacher import Teacher
from fxfuse.progress import Progress
from fxfuse.samples import Samples, Subset

Towards = Literal["ensemble", "labels"]
Schedule = Literal["constant", "linear", "cosine"]
SAVE_SECONDS = 20.0
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


def make_optimizer(plan: FinetunePlan, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    """The optimiser that a plan names. Raises ``MethodError`` for an unknown one, or options that it does not take."""
    known = {n: c for n, c in vars(torch.optim).items() if isinstance(c, type) and issubclass(c, torch.optim.Optimizer)}
    if plan.optimizer not in known or plan.optimizer in ("Optimizer", "LBFGS", "SparseAdam"):
        usable = [name for name in known if name not in ("Optimizer", "LBFGS", "SparseAdam")]
        raise MethodError(f"unknown optimizer {plan.optimizer!r} of torch.optim: {nearest(plan.optimizer, usable)}")
    make: Any = known[plan.optimizer]
    try:
        made: torch.optim.Optimizer = make(list(parameters), lr=plan.lr, **plan.options)
    except (TypeError, ValueError) as error:
        raise MethodError(
            f"torch.optim.{plan.optimizer} does not take lr={plan.lr}, {dict(plan.options)}: {error}"
        ) from None
    return made


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
        self.module, self.teacher, self.samples, self.plan = module, teacher, samples, plan
        self.device, self.store, self.key = device, store, f"finetune {name}"
        outputs = teacher.outputs
        self.parents = [capture(placed(p.program.module, device), outputs).eval() for p in teacher.pairs.parents]
        self.graph = capture(module, outputs)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(plan, self.parameters)
        self.generator = torch.Generator().manual_seed(seed + 2)
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
        held = min(max(1, round(plan.held * len(samples))), len(samples) - 1) if len(samples) > 1 else 0
        self.held, self.train = (order[:held] if held else order), order[held:]
        self.done, self.best_epoch = 0, 0
        self.first = self.best_loss = self._judge()
        self.best = self._state()

    def go(self, progress: Progress) -> FinetuneReport:
        """All epochs that are still to be done."""
        self._load()
        plan, saved = self.plan, time.monotonic()
        with progress.start(plan.epochs, f"fine-tune, {self.key.removeprefix('finetune ')}") as bar:
            bar.advance(self.done)
            while self.done < plan.epochs and not self._exhausted():
                self._epoch()
                self._refresh()
                self.done += 1
                loss = self._judge()
                if loss < self.best_loss:
                    self.best_loss, self.best_epoch, self.best = loss, self.done, self._state()
                bar.advance()
                last = self.done == plan.epochs
                if self.store is not None and (last or time.monotonic() - saved > SAVE_SECONDS):
                    self._save()
                    saved = time.monotonic()
        self.module.load_state_dict(self.best)
        self.module.eval()
        return FinetuneReport(self.first, self.best_loss, self.best_epoch, self.done)

    def _exhausted(self) -> bool:
        return self.plan.patience is not None and self.done - self.best_epoch >= self.plan.patience

    def _epoch(self) -> None:
        order = self.train[torch.randperm(len(self.train), generator=self.generator)]
        batches = [b for b in torch.split(order, self.plan.batch_size) if len(b) > 1 or len(order) == 1]
        steps = self.plan.epochs * len(batches)
        self.graph.train(len(order) > 1)  # one sample has no statistics of its own
        for number, batch in enumerate(batches):
            for group in self.optimizer.param_groups:
                group["lr"] = self.plan.lr * _curve(self.plan.schedule, (self.done * len(batches) + number) / steps)
            loss = self._loss(batch, self.plan.transformations)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's
            self.optimizer.step()

    def _refresh(self) -> None:
        """Running statistics of batch norms, from the training samples as they are."""
        if len(self.train) > 1:
            seen = Subset(self.samples, self.train[:STATISTICS])
            with contextlib.suppress(DataError):  # training has gone astray: its loss tells, and the state is not kept
                recompute_norms(self.module, seen, device=self.device, generator=self.generator)

    def _judge(self) -> float:
        """The loss on the held-out samples as they are."""
        self.graph.eval()
        with torch.no_grad():
            parts = [(len(b), float(self._loss(b, ()))) for b in torch.split(self.held, self.plan.batch_size)]
        return sum(n * loss for n, loss in parts) / sum(n for n, _ in parts)

    def _loss(self, batch: Tensor, kinds: Sequence[Transformation]) -> Tensor:
        inputs, labels = self.samples.take(batch)
        inputs = tuple(x.to(self.device) for x in inputs)
        labels = None if labels is None else labels.to(self.device)
        mixture: Mixture | None = None
        if kinds:
            inputs, mixture = transform(inputs, kinds, self.generator)
        with torch.no_grad(), autocast(self.device):
            answers = [parent(*inputs) for parent in self.parents]
        with autocast(self.device):
            given = self.graph(*inputs)
        losses = []
        for k, value in enumerate(given):
            wanted = self.teacher.answer([answer[k].float() for answer in answers], labels, mixture)
            losses.append(self.teacher.answer_loss(value.float(), wanted))
        return torch.stack(losses).mean()

    # -------------------------------------------------------------------------------------------- state

    def _state(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.module.state_dict().items()}

    def _save(self) -> None:
        assert self.store is not None
        tensors = {"generator": self.generator.get_state()}
        tensors |= {f"now.{name}": value for name, value in self._state().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        for i, parameter in enumerate(self.parameters):
            for key, value in self.optimizer.state[parameter].items():
                if value is not None:
                    tensors[f"optimizer.{i}.{key}"] = torch.as_tensor(value)
        meta = {"done": self.done, "first": self.first, "loss": self.best_loss, "epoch": self.best_epoch}
        self.store.save(self.key, tensors, meta)

    def _load(self) -> None:
        saved = None if self.store is None else self.store.load(self.key)
        if saved is None:
            return
        tensors, meta = saved
        self.generator.set_state(tensors["generator"])
        self.module.load_state_dict({k.removeprefix("now."): v for k, v in tensors.items() if k.startswith("now.")})
        self.best = {k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")}
        for i, parameter in enumerate(self.parameters):
            prefix = f"optimizer.{i}."
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            self.optimizer.state[parameter] = {
                key: value.to(parameter.device) if value.ndim else value for key, value in own.items()
            }
        self.done, self.best_epoch = int(meta["done"]), int(meta["epoch"])  # type: ignore[call-overload]  # as saved
        self.first, self.best_loss = float(meta["first"]), float(meta["loss"])  # type: ignore[arg-type]  # as saved


def _curve(schedule: Schedule, part: float) -> float:
    """The learning rate's factor after a part of all steps."""
    if schedule == "constant":
        return 1.0
    return 1 - part if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * part))
