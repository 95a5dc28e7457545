"""The ensemble of parents that know different classes: one distribution over the union, without labels.

Parent ``p`` gives probabilities ``p_p(c | x)`` over its own classes ``S_p``; they say nothing about whether the class
of ``x`` is among them. With ``k_p(x)`` the chance that it is (its *known-ness*, 1 for a parent that knows everything)
each parent is completed to the union by the ensemble's own opinion on the classes that it does not know, and the
ensemble is the weighted mean of those, the fixed point of

    q(c)  =  sum_p w_p [ k_p p_p(c)  if c in S_p,  else  (1 - k_p) q(c | not S_p) ]  /  sum_p w_p

which for parents of equal classes is the plain mean of probabilities.

Known-ness comes from how the parents answer *together*: a parent is confidently wrong on foreign classes, but in a
manner that differs from how it answers on its own. Every class of the union is a Gaussian in the vector of all
parents' log-probabilities, side by side, with one covariance (linear discriminant analysis); the classes are fitted to
the calibration data by :data:`ROUNDS` rounds of expectation-maximisation, from labels where there are any and else from
the softmax of the parents' centred logits, each parent's scaled to one spread, averaged over the parents that know a
class. The posterior's mass on ``S_p`` is ``k_p``. So no parent's confidence is compared with another's as it stands.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxfuse.label_space import LabelSpace, class_axis
from fxfuse.passes.importance import answers
from fxfuse.passes.observe import evaluating, to_device
from fxfuse.samples import Samples, batches
from fxfuse.types import Program

ROUNDS = 2
SHRINK = 0.1
"""How far the covariance is drawn towards its diagonal."""
FLOOR = -30.0
"""The least log-probability that is looked at; what lies below is all the same."""
SPREAD = 3.0
"""The standard deviation to which centred logits are scaled for the first guess."""
FIXED_POINT = 20
"""Iterations of the module docstring's equation, which halves its error in each where two parents share nothing."""
ROWS = 8192
"""So many answers (samples, or positions of them) are looked at."""
TINY = 1e-12


@dataclass(frozen=True, slots=True)
class LabelEnsemble:
    """Combines the parents' answers over ``labels``. ``scales`` are the spreads of their centred logits; ``slope``
    (all parents' classes x union) and ``offset`` give the posterior, ``None`` where no data has been seen."""

    labels: LabelSpace
    weights: tuple[float, ...]
    scales: tuple[float, ...]
    slope: Tensor | None = None
    offset: Tensor | None = None

    def fits(self, values: Sequence[Tensor]) -> bool:
        """Whether these are the parents' answers between their classes: one tensor per parent."""
        if len(values) != len(self.labels.maps):
            return False
        axes = [class_axis(value.shape) for value in values]
        return all(
            axis is not None and value.shape[axis] == len(own)
            for axis, value, own in zip(axes, values, self.labels.maps, strict=True)
        )

    def probabilities(self, values: Sequence[Tensor]) -> Tensor:
        """The ensemble's probabilities; the class axis, wherever it is, has ``C`` entries."""
        completion = Completion(self).to(values[0].device, _wide(values))
        return _by_rows(values, lambda rows: completion(*(_log_probabilities(z) for z in rows)))

    def logits(self, values: Sequence[Tensor]) -> Tensor:
        """The mean of each class's logits over the parents that know it, by their weights: no calibration at all."""
        completion = Completion(self).to(values[0].device, _wide(values))
        return _by_rows(values, completion.over_union)


class Completion(nn.Module):
    """The equation of the module docstring as plain operators on the last dimension, so that it can be written into a
    graph: from the parents' log-probabilities, ``.. x C_p`` each, to ``.. x C``. Its buffers are in double precision,
    to be brought to that of the values."""

    def __init__(self, ensemble: LabelEnsemble) -> None:
        super().__init__()
        labels = ensemble.labels
        self.parents, self.size = len(labels.maps), labels.size
        self.weights, self.scales, self.complete = ensemble.weights, ensemble.scales, labels.complete
        known = labels.known()
        self.knows_all = tuple(known.all(1).tolist())
        shares = known.double() * torch.tensor(self.weights, dtype=torch.float64)[:, None]
        shares = shares / shares.sum(0)
        for p, own in enumerate(labels.maps):
            places = torch.zeros(len(own), labels.size, dtype=torch.float64)
            places[torch.arange(len(own)), list(own)] = 1.0
            self.register_buffer(f"places_{p}", places)
            self.register_buffer(f"shared_{p}", places * shares[p])
            self.register_buffer(f"known_{p}", known[p].double())
        self.calibrated = ensemble.slope is not None and ensemble.offset is not None
        if ensemble.slope is not None and ensemble.offset is not None:
            self.register_buffer("slope", ensemble.slope.double())
            self.register_buffer("offset", ensemble.offset.double())

    def forward(self, *logs: Tensor) -> Tensor:
        """``q``."""
        own = [log.exp() @ self.get_buffer(f"places_{p}") for p, log in enumerate(logs)]
        if self.complete:
            return self._mean(own)
        posterior = self.posterior(*logs)
        known = [self.get_buffer(f"known_{p}") for p in range(self.parents)]
        sure = [(posterior * own_classes).sum(-1, keepdim=True) for own_classes in known]
        # Not 1 - sure: where rounding takes that below zero, chances are negative and have no logarithm.
        unsure = [(posterior * (1 - own_classes)).sum(-1, keepdim=True) for own_classes in known]
        q = posterior
        for _ in range(FIXED_POINT):
            parts = []
            for p in range(self.parents):
                if self.knows_all[p]:
                    parts.append(own[p])
                    continue
                rest = q * (1 - known[p])
                rest = rest / rest.sum(-1, keepdim=True).clamp_min(TINY)
                parts.append(sure[p] * own[p] + unsure[p] * rest)
            q = self._mean(parts)
            q = q / q.sum(-1, keepdim=True)
        return q

    def posterior(self, *logs: Tensor) -> Tensor:
        """The classes' chances by the discriminant, or the first guess where there has been no data."""
        if not self.calibrated:
            return self.guess(*logs)
        features = torch.cat([log.clamp_min(FLOOR) for log in logs], -1)
        return torch.softmax(features @ self.get_buffer("slope") + self.get_buffer("offset"), -1)

    def guess(self, *logs: Tensor) -> Tensor:
        """The first guess: the softmax of the mean of centred, scaled logits."""
        scaled = [_centred(log) * (SPREAD / scale) for log, scale in zip(logs, self.scales, strict=True)]
        return torch.softmax(self.over_union(scaled), -1)

    def over_union(self, rows: Sequence[Tensor]) -> Tensor:
        """The weighted mean, class by class, over the parents that know it."""
        total = rows[0] @ self.get_buffer("shared_0")
        for p in range(1, self.parents):
            total = total + rows[p] @ self.get_buffer(f"shared_{p}")
        return total

    def _mean(self, parts: Sequence[Tensor]) -> Tensor:
        total = parts[0] * self.weights[0]
        for part, weight in zip(parts[1:], self.weights[1:], strict=True):
            total = total + part * weight
        return total


def label_ensemble(
    labels: LabelSpace,
    weights: tuple[float, ...],
    parents: Sequence[Program],
    samples: Samples | None,
    *,
    device: torch.device,
    batch_size: int = 256,
) -> LabelEnsemble:
    """The ensemble over ``labels``, calibrated on ``samples``; without any the first guess stands for the posterior."""
    plain = LabelEnsemble(labels, weights, tuple(SPREAD for _ in parents))
    if samples is None or labels.complete:
        return plain
    logs, given = _answers(plain, parents, samples, device, batch_size)
    if logs is None:
        return plain
    scales = tuple(max(float(_centred(log).square().mean().sqrt()), TINY) for log in logs)
    start = LabelEnsemble(labels, weights, scales)
    guess = Completion(start).to(_wide(logs)).guess(*logs)
    if given is not None:
        hard = (given >= 0) & (given < labels.size)
        guess[hard] = torch.nn.functional.one_hot(given[hard].long(), labels.size).to(guess)
    features = torch.cat([log.clamp_min(FLOOR) for log in logs], 1).double()
    slope, offset = _discriminant(features, guess.double(), 1 if given is not None else ROUNDS)
    return LabelEnsemble(labels, weights, scales, slope, offset)


def _answers(
    ensemble: LabelEnsemble, parents: Sequence[Program], samples: Samples, device: torch.device, batch_size: int
) -> tuple[list[Tensor] | None, Tensor | None]:
    """All parents' log-probabilities on the data, rows x classes each, and the labels of the rows if there are any."""
    found: list[list[Tensor]] = [[] for _ in parents]
    marks: list[Tensor] = []
    rows = 0
    for inputs, given in batches(samples, batch_size, torch.Generator().manual_seed(0)):
        moved = to_device(inputs, device)
        values = []
        for program in parents:
            with torch.no_grad(), evaluating(program.module, device):
                values.append(answers(program.module(*moved)))
        fitting = next((list(column) for column in zip(*values, strict=False) if ensemble.fits(column)), None)
        if fitting is None:
            return None, None
        taken = [_log_probabilities(_rows(value).to(_wide(fitting))).cpu() for value in fitting]
        step = max(1, -(-len(taken[0]) * len(samples) // len(inputs[0]) // ROWS))
        for own, log in zip(found, taken, strict=True):
            own.append(log[::step])
        if given is not None and given.numel() == len(taken[0]):
            marks.append(given.reshape(-1)[::step])
        rows += len(taken[0][::step])
        if rows >= ROWS:
            break
    logs = [torch.cat(own) for own in found]
    labelled = len(marks) == len(found[0]) and bool(marks)
    return logs, torch.cat(marks).cpu() if labelled else None


def _discriminant(features: Tensor, q: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """Slope and offset of the classes' posterior under Gaussians of one covariance, after some rounds of EM."""
    slope = offset = features.new_zeros(0)
    for _ in range(rounds):
        mass = q.sum(0) + 1e-6
        means = (q.T @ features) / mass[:, None]
        spread = features.T @ (features * q.sum(1, keepdim=True)) - (means * mass[:, None]).T @ means
        spread = spread / len(features)
        diagonal = spread.diagonal().clamp_min(0)
        ridge = torch.diag(SHRINK * diagonal + 1e-3 * diagonal.mean() + 1e-9)
        slope = torch.linalg.solve((1 - SHRINK) * spread + ridge, means.T)
        offset = (mass / mass.sum()).log() - 0.5 * (means * slope.T).sum(1)
        q = (features @ slope + offset).softmax(1)
    return slope, offset


# ------------------------------------------------------------------------------------------------- rows


def _rows(value: Tensor) -> Tensor:
    axis = class_axis(value.shape)
    assert axis is not None
    return value.movedim(axis, -1).reshape(-1, value.shape[axis])


def _by_rows(values: Sequence[Tensor], combine: Callable[[list[Tensor]], Tensor]) -> Tensor:
    """Combine rows x classes of every parent, and put the class axis back where it was."""
    axis = class_axis(values[0].shape)
    assert axis is not None
    moved = values[0].movedim(axis, -1).shape[:-1]
    kind = _wide(values)
    joined = combine([_rows(value).to(kind) for value in values])
    return joined.reshape(*moved, joined.shape[-1]).movedim(-1, axis).to(values[0].dtype)


def _wide(values: Sequence[Tensor]) -> torch.dtype:
    """The values' precision, or single precision where that is less."""
    return functools.reduce(torch.promote_types, (value.dtype for value in values), torch.float32)


def _centred(rows: Tensor) -> Tensor:
    floored = rows.clamp_min(FLOOR)
    return floored - floored.mean(-1, keepdim=True)


def _log_probabilities(rows: Tensor) -> Tensor:
    """Of logits, or of probabilities."""
    total = rows.sum(1)
    if bool((rows >= 0).all()) and bool((total - 1).abs().max() < 1e-3):
        return rows.clamp_min(1e-30).log()
    return rows.log_softmax(1)
