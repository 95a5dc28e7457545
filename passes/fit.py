"""Fit the fused network, level by level in topological order and then all levels together.

Level by level, every level's inputs come from the already fitted prefix of the fused network, and its target from the
parents (:mod:`fxfuse.passes.teacher`). Values travel in *chunks* (fixed mini-batches): for each chunk only the values
at the moving front are held, for the fused network and every parent, so each level is computed once for each and the
cost is linear in the number of levels. How many chunks are held follows from a memory budget and has a limit, so memory
does not grow with the data; the joint fit sees all of it.

Whatever fits a level (:mod:`fxfuse.passes.fit_linear`, :mod:`fxfuse.passes.fit_gradient`), its error on held-out
chunks is measured before and after, and a level that came out worse is put back. The joint fit
(:mod:`fxfuse.passes.fit_joint`) follows.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from fxfuse.errors import DataError
from fxfuse.passes.augment import Transformation, transform
from fxfuse.passes.fit_gradient import fit_gradient
from fxfuse.passes.fit_linear import fit_linear
from fxfuse.passes.fitting import Chunk, FitPlan, LevelTask, Store
from fxfuse.passes.norms import pool_norms
from fxfuse.passes.observe import placed
from fxfuse.passes.subgraph import subgraph
from fxfuse.passes.teacher import Teacher
from fxfuse.progress import Progress
from fxfuse.samples import Samples, hold_out
from fxfuse.types import Level, LevelReport


def fit_levels(
    fused: fx.GraphModule,
    teacher: Teacher,
    samples: Samples,
    plan: FitPlan,
    *,
    device: torch.device,
    seed: int,
    progress: Progress,
    store: Store | None = None,
) -> list[LevelReport]:
    """Fit ``fused`` in place, level by level; returns what happened to each. ``plan.levels = none`` only measures."""
    parents = [placed(parent.program.module, device) for parent in teacher.pairs.parents]
    levels = teacher.pairs.reference.partition.levels
    chunks = make_chunks(fused, parents, teacher, samples, plan, device, seed)
    uses = _last_uses(levels)
    reports: list[LevelReport] = []
    with progress.start(len(levels), "fit levels") as bar:
        for level in levels:
            report = _one(fused, parents, level, chunks, teacher, plan, seed, store)
            reports.append(_with_widths(report, level, teacher))
            for chunk in chunks:
                chunk.target = None
                for env in (chunk.fused, *chunk.parents):
                    for name in [n for n in env if uses.get(n, -1) <= level.index]:
                        del env[name]
            bar.advance()
    return reports


def _one(
    fused: fx.GraphModule,
    parents: list[fx.GraphModule],
    level: Level,
    chunks: list[Chunk],
    teacher: Teacher,
    plan: FitPlan,
    seed: int,
    store: Store | None,
) -> LevelReport:
    """One level: the parents' values and the target, the fit, and the fused value for the levels behind."""
    start = time.monotonic()
    piece = subgraph(fused, level.inputs, (level.boundary,)).eval()
    pieces = tuple(subgraph(parent, level.inputs, (level.boundary,)).eval() for parent in parents)
    is_output = level.boundary in teacher.outputs
    known = is_output or teacher.can_target(level.boundary)
    task = LevelTask(level, piece, chunks, teacher, is_output, pieces)
    with torch.no_grad():
        for chunk in chunks:
            for env, own in zip(chunk.parents, pieces, strict=True):
                env[level.boundary] = own(*(env[name] for name in level.inputs))[0]
            if known:
                values = [env[level.boundary] for env in chunk.parents]
                chunk.target = (
                    teacher.answer(values, chunk.labels) if is_output else teacher.target(level.boundary, values)
                )
    report = LevelReport(level.name, None, None, (), note="" if known else "its target is not known")
    saved = None if store is None else store.load(_key(level))
    if saved is not None:
        _restore(fused, saved[0])
        report = replace(report, **{k: saved[1][k] for k in ("before", "after", "fit", "seconds", "note")})  # type: ignore[arg-type]  # as saved below
    elif known:
        report = _fit(fused, task, plan, seed, report)
        report = replace(report, seconds=time.monotonic() - start)
        if store is not None:
            keep = ("before", "after", "fit", "seconds", "note")
            store.save(_key(level), _state(fused, task.piece), {k: getattr(report, k) for k in keep})
    with torch.no_grad():
        for chunk in chunks:
            chunk.fused[level.boundary] = piece(*task.inputs(chunk))[0]
    return report


def _fit(fused: fx.GraphModule, task: LevelTask, plan: FitPlan, seed: int, report: LevelReport) -> LevelReport:
    """Norms first, then the weights; whatever does not lower the held-out error is undone."""
    before = task.error()
    error, repaired = _kept_if_better(fused, task, before, lambda: refresh_norms(task))
    kind = "none" if plan.levels == "none" else "gradient" if task.is_output else plan.levels
    if kind == "linear":
        error, fitted = _kept_if_better(fused, task, error, lambda: fit_linear(task))
    elif kind == "gradient":
        error, fitted = _kept_if_better(
            fused, task, error, lambda: fit_gradient(task, plan.steps, plan.lr, plan.max_seconds, seed)
        )
    else:
        fitted = False
    notes = ["norm statistics recomputed"] if repaired else []
    if kind != "none" and not fitted:
        notes.append("fitting did not lower the error")
    return replace(report, before=before, after=error, fit=kind if fitted else "none", note="; ".join(notes))


def _kept_if_better(
    fused: fx.GraphModule, task: LevelTask, error: float, change: Callable[[], bool]
) -> tuple[float, bool]:
    """Make a change to the level and keep it only if the held-out error falls; the error then, and whether it did."""
    state = {name: value.clone() for name, value in _state(fused, task.piece).items()}
    if not change():
        return error, False
    after = task.error()
    if after < error:
        return after, True
    _restore(fused, state)
    return error, False


# ------------------------------------------------------------------------------------------------ chunks


def make_chunks(
    fused: fx.GraphModule,
    parents: Sequence[fx.GraphModule],
    teacher: Teacher,
    samples: Samples,
    plan: FitPlan,
    device: torch.device,
    seed: int,
) -> list[Chunk]:
    """Chunks of transformed samples, as many as the memory budget allows; those held out come first."""
    generator = torch.Generator().manual_seed(seed)
    trained, held = hold_out(len(samples), plan.held, generator)
    room = plan.budget // max(1, _front_bytes(teacher, plan.batch_size, len(parents)))
    room = max(2, min(room, plan.most // plan.batch_size))
    names = [node.name for node in fused.graph.nodes if node.op == "placeholder"]
    chunks: list[Chunk] = []
    for part, is_held in ((held, True), (trained, False)):
        count = max(1, room // 4) if is_held else room
        for indices, kinds in _passes(part, plan, generator, count):
            inputs, labels = samples.take(indices)
            if kinds:
                inputs, _ = transform(inputs, kinds, generator)
            moved = tuple(x.to(device) for x in inputs)
            env = dict(zip(names, moved, strict=True))
            own = None if labels is None else labels.to(device)
            chunks.append(Chunk(dict(env), [dict(env) for _ in parents], own, is_held))
    return chunks


def _passes(
    part: Tensor, plan: FitPlan, generator: torch.Generator, room: int
) -> Iterator[tuple[Tensor, tuple[Transformation, ...]]]:
    """First the samples as they are, then transformed copies of them in other batches, up to ``room`` batches.

    A level's labels are those of whole samples, so samples are not mixed here.
    """
    kinds = tuple(kind for kind in plan.transformations if kind != "mix")
    made = 0
    for copy in range(plan.copies if kinds else 1):
        order = part if copy == 0 else part[torch.randperm(len(part), generator=generator)]
        for chunk in torch.split(order, plan.batch_size):
            if made == room:
                return
            made += 1
            yield chunk, kinds if copy else ()


def _front_bytes(teacher: Teacher, batch: int, parents: int) -> int:
    """Bytes of one chunk at the widest point of the front: at a level, all values made before it and still to be read,
    and its own."""
    program = teacher.pairs.reference.program
    names = [node.name for node in program.module.graph.nodes if node.op == "placeholder"]
    sizes = {name: _elements(example.shape) for name, example in zip(names, program.example, strict=True)}
    levels = teacher.pairs.reference.partition.levels
    uses = _last_uses(levels)
    widest = 0
    for level in levels:
        before = sum(size for name, size in sizes.items() if uses.get(name, -1) >= level.index)
        sizes[level.boundary] = _elements(level.shape)
        widest = max(widest, before + sizes[level.boundary])
    return 4 * batch * widest * (parents + 2)


def _elements(shape: tuple[int, ...]) -> int:
    return math.prod(shape[1:])


def _last_uses(levels: Sequence[Level]) -> dict[str, int]:
    """The last level that reads each value."""
    return {name: level.index for level in levels for name in level.inputs}


# ------------------------------------------------------------------------------------------------- state


def _key(level: Level) -> str:
    return f"level {level.index} {level.boundary}"


def _state(fused: fx.GraphModule, piece: nn.Module) -> dict[str, Tensor]:
    """The tensors of ``fused`` that a piece of it shares, by name."""
    own = {id(t) for t in (*piece.parameters(), *piece.buffers())}
    named = (*fused.named_parameters(), *fused.named_buffers())
    return {name: tensor.detach() for name, tensor in named if id(tensor) in own}


def _restore(fused: fx.GraphModule, state: Mapping[str, Tensor]) -> None:
    named = dict((*fused.named_parameters(), *fused.named_buffers()))
    with torch.no_grad():
        for name, value in state.items():
            named[name].copy_(value)


def refresh_norms(task: LevelTask) -> bool:
    """Running statistics of a level's batch norms, from the chunks that it will be fitted on; whether it has any."""
    try:
        return pool_norms(task.piece, (task.inputs(chunk) for chunk in task.chunks if not chunk.held)) > 0
    except DataError:  # activations that are not finite: the statistics stay as they were merged
        return False


def _with_widths(report: LevelReport, level: Level, teacher: Teacher) -> LevelReport:
    """The report, with what there is to say of the space that the level ends in."""
    if level.space is None:
        return report
    space = teacher.pairs.reference.axes.spaces[level.space]
    grouping = teacher.groupings.get(level.space)
    return replace(
        report,
        space=space.name,
        width=space.size,
        parent_widths=teacher.pairs.widths(level.space),
        grouping_error=None if grouping is None else grouping.error,
    )
