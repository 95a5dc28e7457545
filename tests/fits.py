"""Two parents, their rewritten fusion and its teacher: what the tests of fitting start from."""

import copy
import functools
from dataclasses import dataclass

import torch
from laws import CPU, analysed, data, statistics
from torch import fx

from fxfuse.passes.correspond import correspond
from fxfuse.passes.fit import make_chunks
from fxfuse.passes.fitting import Chunk, FitPlan, LevelTask
from fxfuse.passes.group import group
from fxfuse.passes.observe import placed
from fxfuse.passes.rewrite import rewrite
from fxfuse.passes.subgraph import subgraph
from fxfuse.passes.teacher import Teacher, make_teacher
from fxfuse.samples import Samples

PLAN = FitPlan(steps=40, joint_steps=40, batch_size=32, held=0.25)


@dataclass(frozen=True)
class Case:
    """``fused`` is a fresh copy."""

    teacher: Teacher
    fused: fx.GraphModule
    samples: Samples


@functools.cache
def _made(name: str, head: str, count: int) -> Case:
    parents = [analysed(name, seed=seed) for seed in (0, 1)]
    pairs = correspond(parents[0], parents)
    samples = data(name, count)
    found = statistics(pairs, samples)
    spaces = parents[0].axes.spaces
    widths, targets = {s.id: pairs.widths(s.id) for s in spaces}, {s.id: s.size for s in spaces}
    groupings = group(spaces, found, widths, targets, "hungarian", {}, (0.5, 0.5), 0)
    fused = rewrite(pairs, groupings, (0.5, 0.5))
    return Case(make_teacher(pairs, groupings, (0.5, 0.5), found, head, CPU), fused, samples)


def case(name: str = "digits_net", head: str = "probabilities", count: int = 128) -> Case:
    """Two zoo models fused by assignment."""
    made = _made(name, head, count)
    return Case(made.teacher, copy.deepcopy(made.fused), made.samples)


def first_task(made: Case, index: int = 0) -> LevelTask:
    """The task of a level whose inputs are the graph's."""
    level = made.teacher.pairs.reference.partition.levels[index]
    parents = [placed(p.program.module, CPU) for p in made.teacher.pairs.parents]
    chunks: list[Chunk] = make_chunks(made.fused, parents, made.teacher, made.samples, PLAN, CPU, 0)
    piece = subgraph(made.fused, level.inputs, (level.boundary,)).eval()
    own = tuple(subgraph(p, level.inputs, (level.boundary,)).eval() for p in parents)
    with torch.no_grad():
        for chunk in chunks:
            values = [m(*(env[n] for n in level.inputs))[0] for m, env in zip(own, chunk.parents, strict=True)]
            chunk.target = made.teacher.target(level.boundary, values)
    return LevelTask(level, piece, chunks, made.teacher, False, own)


class StoppedError(Exception):
    """Raised by the store."""


class Store:
    """Keeps what it is given and stops the run after ``stop`` of them."""

    def __init__(self, stop):
        self.kept, self.stop = {}, stop

    def save(self, key, tensors, meta=None):
        self.kept[key] = ({k: v.detach().clone() for k, v in tensors.items()}, dict(meta or {}))
        self.stop -= 1
        if self.stop == 0:
            raise StoppedError

    def load(self, key):
        return self.kept.get(key)


__all__ = ["CPU", "PLAN", "Case", "StoppedError", "Store", "case", "first_task"]
