"""What the parts of fitting share: the plan, the samples on their way through the networks, the task of one level."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, fx

from fxfuse.passes.augment import Transformation
from fxfuse.passes.teacher import Teacher
from fxfuse.types import Level

FitKind = Literal["none", "linear", "gradient"]
Start = Literal["auto", "fused"]
Repair = Literal["norms", "rescale"]


class Store(Protocol):
    """Where finished levels are kept, so that an interrupted run goes on (:class:`fxfuse.output.Checkpoint`)."""

    def save(self, key: str, tensors: Mapping[str, Tensor], meta: Mapping[str, object] | None = None) -> None:
        """Keep tensors and JSON values under a key."""
        ...

    def load(self, key: str) -> tuple[dict[str, Tensor], dict[str, object]] | None:
        """What was kept, or ``None``."""
        ...


@dataclass(frozen=True, slots=True)
class FitPlan:
    """How to fit.

    ``steps`` are mini-batch steps per level, of ``batch_size`` samples; ``joint_steps`` those of all levels
    together (0: none; the pipeline takes more for deeper networks), of ``joint_batch``. ``held`` is the share of
    the samples that only judge. Fitting level by level, the moving front may hold ``budget`` bytes and ``most``
    samples. ``start`` says whether the joint fit may begin with a parent's weights where those answer better
    (``auto``), ``repair`` whether layers that no norm follows are rescaled before the fit (``rescale``).
    """

    levels: FitKind = "gradient"
    steps: int = 100
    joint_steps: int = 300
    lr: float = 2e-3
    batch_size: int = 128
    joint_batch: int = 128
    held: float = 0.1
    copies: int = 4
    transformations: tuple[Transformation, ...] = ()
    budget: int = 1 << 29
    most: int = 4096
    max_seconds: float | None = None
    start: Start = "auto"
    repair: Repair = "norms"


@dataclass(slots=True)
class Chunk:
    """One mini-batch on its way through the networks: the values at the front, by node name."""

    fused: dict[str, Tensor]
    parents: list[dict[str, Tensor]]
    labels: Tensor | None
    held: bool
    target: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LevelTask:
    """What fitting one level needs: the piece of the fused graph, its chunks with targets, and how to judge."""

    level: Level
    piece: fx.GraphModule
    chunks: list[Chunk]
    teacher: Teacher
    is_output: bool
    parents: tuple[fx.GraphModule, ...]

    def inputs(self, chunk: Chunk) -> list[Tensor]:
        """The level's inputs in a chunk."""
        return [chunk.fused[name] for name in self.level.inputs]

    def loss(self, value: Tensor, chunk: Chunk) -> Tensor:
        """The level's error on one chunk (see :mod:`fxfuse.passes.teacher`)."""
        assert chunk.target is not None
        if self.is_output:
            return self.teacher.answer_loss(value, chunk.target)
        weight = self.teacher.neuron_weight(self.level.boundary, chunk.target)
        return self.teacher.error(self.level.boundary, value, chunk.target, weight)

    def error(self) -> float:
        """The level's error on the held-out chunks."""
        held = [chunk for chunk in self.chunks if chunk.held] or self.chunks
        with torch.no_grad():
            return float(sum(self.loss(self.piece(*self.inputs(c))[0], c) for c in held)) / len(held)
