"""Verify: the fused network beside its parents, their ensembles and the plain average, in one pass over the data.

With ``z_p`` the parents' logits and ``w_p`` their weights (which sum to 1) there are two ensembles:

    probabilities  log sum_p w_p softmax(z_p)          logits  sum_p w_p z_p

and every row of the table is judged by the same figures: accuracy and cross-entropy where there are labels, agreement
with the ensemble of probabilities, and, where there is no accuracy, the relative squared distance of the output to the
parents' mean output. Nothing is kept of a batch but sums.

What counts as a batch of logits: the first floating-point tensor of the output that fits the labels, its class axis
being the one that they lack, so ``(B, C)``, ``(B, T, C)`` and ``(B, C, H, W)`` alike. One logit per sample is a binary
classifier; outputs that already are probabilities are taken as such. Labels of ``-100`` do not count.
"""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxfuse.errors import DataError
from fxfuse.label_space import class_axis, known
from fxfuse.passes.importance import answers
from fxfuse.passes.label_ensemble import LabelEnsemble
from fxfuse.passes.observe import evaluating, to_device
from fxfuse.progress import Progress, QuietProgress
from fxfuse.samples import Samples, batches
from fxfuse.types import Program, Score, parameter_count

Network = nn.Module | Callable[..., Any]
"""What can be scored: a module, or any function of the inputs (an exported program, a session of another runtime)."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One output, read: ``logits`` are rows x classes (``None`` without a class axis), ``output`` is as it came."""

    output: Tensor
    logits: Tensor | None


def score(
    name: str,
    network: Network,
    samples: Samples,
    *,
    device: torch.device,
    batch_size: int = 256,
    reference: Network | None = None,
) -> Score:
    """Accuracy and cross-entropy of one network; agreement and error against ``reference``, if there is one.

    Modules run in evaluation mode on ``device`` and are left as they were. Raises :class:`DataError` for labels that
    are out of range or do not fit the output, and for data without samples.
    """
    others = {} if reference is None else {_REFERENCE: reference}
    table = _Table(samples)
    with _Running({name: network, **others}, device) as running:
        for inputs, labels in batches(samples, batch_size):
            read = running.read(inputs, labels)
            goal = read[-1] if others else None
            table.add(name, read[0], labels, goal, goal)
    return table.row(name, _size(network))


def compare(
    parents: Sequence[Program],
    fused: Network,
    samples: Samples,
    *,
    weights: Sequence[float],
    device: torch.device,
    average: Network | None = None,
    others: Mapping[str, Network] | None = None,
    union: LabelEnsemble | None = None,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> tuple[Score, ...]:
    """The comparison table: each parent, the two ensembles, the plain average if given, ``others`` by name, the fused.

    Every network runs once per batch. ``weights`` are the parents' in the ensembles. Where outputs are no logits, the
    mean output stands for both ensembles. With ``union`` all are judged over the union of the parents' classes: a
    parent is never right on a class that it does not know, and has no loss. Raises :class:`DataError` as
    :func:`score`.
    """
    programs = {f"{i} {program.name}": program.module for i, program in enumerate(parents)}
    rest: dict[str, Network] = {} if average is None else {"average": average}
    rest |= {**(others or {}), "fused": fused}
    total = float(sum(weights))
    shares = [w / total for w in weights]
    table = _Table(samples)
    progress = QuietProgress() if progress is None else progress
    with _Running({**programs, **rest}, device) as running, progress.start(len(samples), "compare") as step:
        for inputs, labels in batches(samples, batch_size):
            read = running.read(inputs, labels)
            of_parents, of_rest = read[: len(programs)], read[len(programs) :]
            mean, vote = _ensembles(of_parents, shares) if union is None else _united(of_parents, union)
            for p, (name, own) in enumerate(zip(programs, of_parents, strict=True)):
                table.add(name, own if union is None else _embedded(own, union, p), labels, vote, mean)
            if vote is not None:
                table.add(_PROBABILITIES, vote, labels, vote, None)
            table.add(_MEAN if mean.logits is None else _LOGITS, mean, labels, vote, mean)
            for name, own in zip(rest, of_rest, strict=True):
                table.add(name, own, labels, vote, mean)
            step.advance(len(inputs[0]))
    sizes = {name: _size(network) for name, network in (programs | rest).items()}
    together = sum(sizes[name] or 0 for name in programs)
    names = [*programs, *(name for name in (_PROBABILITIES, _LOGITS, _MEAN) if name in table.sums), *rest]
    shown = {name: program.name for name, program in zip(programs, parents, strict=True)}
    return tuple(table.row(name, sizes.get(name, together), shown.get(name)) for name in names)


_PROBABILITIES = "ensemble (probabilities)"
_LOGITS = "ensemble (logits)"
_MEAN = "ensemble (mean output)"
_REFERENCE = "(reference)"


def _size(network: Network) -> int | None:
    return parameter_count(network) if isinstance(network, nn.Module) else None


# ---------------------------------------------------------------------------------------------------- reading


class _Running:
    """Networks in evaluation mode on a device, for as long as the ``with`` block lasts."""

    def __init__(self, networks: Mapping[str, Network], device: torch.device) -> None:
        self.networks = networks
        self.device = device
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> "_Running":
        with contextlib.ExitStack() as stack:
            for network in self.networks.values():
                if isinstance(network, nn.Module):
                    stack.enter_context(evaluating(network, self.device))
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def read(self, inputs: tuple[Tensor, ...], labels: Tensor | None) -> list[Reading]:
        """What every network says to one batch, in their order."""
        inputs = to_device(inputs, self.device)
        with torch.no_grad():
            return [_reading(name, network(*inputs), labels) for name, network in self.networks.items()]


def _reading(name: str, output: Any, labels: Tensor | None) -> Reading:
    tensors = answers(output)
    if not tensors:
        raise DataError(f"{name} has no floating-point output, so there is nothing to compare")
    whole = labels is not None and not labels.is_floating_point()
    if whole:
        assert labels is not None
        for tensor in tensors:
            logits = _logits(tensor, labels.shape)
            if logits is not None:
                return Reading(tensor, logits)
        shapes = ", ".join(str(list(t.shape)) for t in tensors)
        raise DataError(
            f"labels of shape {list(labels.shape)} do not fit the output of {name}, {shapes}: they need the output's "
            "shape without its class dimension"
        )
    first = tensors[0]
    return Reading(first, None if labels is not None or _single(first) else _logits(first, None))


def _single(output: Tensor) -> bool:
    axis = class_axis(output.shape)
    return axis is None or output.shape[axis] == 1


def _logits(output: Tensor, labels: torch.Size | None) -> Tensor | None:
    """Rows x classes, in float64; ``None`` where the labels do not fit."""
    axis = class_axis(output.shape, labels)
    output = output.double()
    if labels is not None and output.shape == labels:  # one logit each
        output, axis = output.unsqueeze(-1), output.dim()
    if axis is None or (labels is not None and output.shape[:axis] + output.shape[axis + 1 :] != labels):
        return None
    rows = output.movedim(axis, -1).reshape(-1, output.shape[axis])
    if rows.shape[1] == 1:
        return torch.cat([torch.zeros_like(rows), rows], 1)
    sums = rows.sum(1)
    if bool((rows >= 0).all()) and bool(torch.allclose(sums, torch.ones_like(sums), atol=1e-4)):
        return rows.clamp_min(1e-30).log()
    return rows


def _ensembles(parents: Sequence[Reading], shares: Sequence[float]) -> tuple[Reading, Reading | None]:
    """The mean of outputs (and of logits), and the mean of probabilities where there are any."""
    output = sum((own.output * w for own, w in zip(parents, shares, strict=True)), torch.zeros_like(parents[0].output))
    logits = [own.logits for own in parents if own.logits is not None]
    if len(logits) < len(parents):
        return Reading(output, None), None
    mean = torch.stack([z * w for z, w in zip(logits, shares, strict=True)]).sum(0)
    chances = torch.stack([z.softmax(1) * w for z, w in zip(logits, shares, strict=True)]).sum(0)
    return Reading(output, mean), Reading(output, chances.clamp_min(1e-300).log())


def _united(parents: Sequence[Reading], union: LabelEnsemble) -> tuple[Reading, Reading]:
    """The same over the union of the parents' classes: uncalibrated logits, and calibrated probabilities."""
    rows = [own.logits for own in parents if own.logits is not None]
    if len(rows) < len(parents) or not union.fits(rows):
        counts = ", ".join(str(list(own.output.shape)) for own in parents)
        raise DataError(f"the parents' outputs, {counts}, are not answers between the classes of their label maps")
    mean, chances = union.logits(rows), union.probabilities(rows)
    return Reading(mean, mean), Reading(chances, chances.clamp_min(1e-300).log())


def _embedded(own: Reading, union: LabelEnsemble, parent: int) -> Reading:
    """One parent's answer over the union; what it does not know cannot be its answer."""
    assert own.logits is not None
    return replace(own, logits=union.labels.spread(parent, own.logits, float("-inf")))


# ---------------------------------------------------------------------------------------------------- figures


@dataclass(slots=True)
class _Sums:
    right: float = 0.0
    loss: float = 0.0
    labelled: int = 0
    agreed: float = 0.0
    compared: int = 0
    distance: float = 0.0
    energy: float = 0.0
    judged: bool = False


class _Table:
    """Sums of every figure of every row."""

    def __init__(self, samples: Samples) -> None:
        if len(samples) == 0:
            raise DataError(f"there is nothing to compare on: no samples in {samples.description}")
        self.sums: dict[str, _Sums] = {}

    def add(self, name: str, own: Reading, labels: Tensor | None, vote: Reading | None, mean: Reading | None) -> None:
        """One batch of one row; ``vote`` is what to agree with, ``mean`` the output to be near to."""
        sums = self.sums.setdefault(name, _Sums())
        if own.logits is not None and labels is not None:
            self._judge(sums, own.logits, labels.to(own.logits.device).reshape(-1).long())
        elif labels is not None:
            self._regress(name, sums, own.output, labels.to(own.output))
        if own.logits is not None and vote is not None and vote.logits is not None:
            sums.agreed += int((own.logits.argmax(1) == vote.logits.argmax(1)).sum())
            sums.compared += len(own.logits)
        if mean is not None and own.output.shape == mean.output.shape:
            goal = mean.output.double()
            sums.distance += float((own.output.double() - goal).square().sum())
            sums.energy += float(goal.square().sum())

    def _judge(self, sums: _Sums, logits: Tensor, labels: Tensor) -> None:
        there = known(labels, logits.shape[1])
        logits, labels = logits[there], labels[there]
        sums.judged = True
        sums.labelled += len(labels)
        sums.right += int((logits.argmax(1) == labels).sum())
        sums.loss += float(F.cross_entropy(logits, labels, reduction="sum"))

    def _regress(self, name: str, sums: _Sums, output: Tensor, labels: Tensor) -> None:
        if output.numel() != labels.numel():
            raise DataError(f"targets of shape {list(labels.shape)} do not fit {name}'s output, {list(output.shape)}")
        sums.labelled += labels.numel()
        sums.loss += float((output.double() - labels.double().view_as(output)).square().sum())

    def row(self, name: str, parameters: int | None, shown: str | None = None) -> Score:
        """The figures of one row."""
        sums = self.sums[name]
        judged = sums.judged and sums.labelled > 0
        return Score(
            name=name if shown is None else shown,
            accuracy=sums.right / sums.labelled if judged else None,
            loss=sums.loss / sums.labelled if sums.labelled and math.isfinite(sums.loss) else None,
            agreement=sums.agreed / sums.compared if sums.compared else None,
            parameters=parameters,
            error=sums.distance / sums.energy if sums.energy > 0 and not judged else None,
        )
