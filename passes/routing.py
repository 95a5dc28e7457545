"""Choose one parent per sample: the router of *adaptive model selection*, as plain operators that go into the graph.

A router scores every parent on every sample from the parents' answers ``z_p`` at the first output with classes (and,
for ``distance``, from the features that the last level reads); the sample gets the answers of the parent whose score is
largest. Nothing is merged, so nothing interferes: what is wrong is wrong because the wrong parent was asked.

    confidence   the largest log-probability
    distance     -min_c ||f - mu_pc||^2 / v_p   with f the features, averaged over positions and scaled to length 1,
                 mu_pc their mean over samples, each weighted by how surely parent p and all parents together take it
                 for class c, v_p the mean squared distance, so weighted
    gate         a linear function of all parents' log-probabilities, trained so that the mixture
                 sum_p softmax(gate)_p softmax(z_p) gives the labels, or the mean of probabilities without labels

The last two need calibration data. Outputs with positions are scored by the mean over positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxfuse.errors import MethodError, nearest
from fxfuse.label_space import LabelSpace, class_axis
from fxfuse.passes.correspond import Correspondence
from fxfuse.passes.descent import descend, falling
from fxfuse.passes.label_ensemble import LabelEnsemble
from fxfuse.passes.observe import placed, to_device
from fxfuse.passes.subgraph import capture, output_nodes
from fxfuse.samples import Samples, batches
from fxfuse.types import Analysis

RouterName = Literal["confidence", "distance", "gate"]
FLOOR = -15.0
"""The least log-probability that a gate sees, and the answer on classes that the chosen parent does not know."""
STEPS, RATE, DECAY = 300, 0.05, 1e-3
"""Adam's, for the gate; all of the data in each step."""
SEEN = 4096


@dataclass(frozen=True, slots=True)
class Places:
    """What a router looks at: the ``answer`` node, its class ``axis`` and number of dimensions, whether it gives
    probabilities already; the ``features`` node and its neurons' axis (``None`` where there is none)."""

    answer: str
    axis: int
    dims: int
    normalised: bool
    features: str | None
    neurons: int | None

    def logs(self, value: Tensor) -> Tensor:
        """The log-probabilities of an answer."""
        return value.clamp_min(1e-30).log() if self.normalised else F.log_softmax(value, self.axis)

    def nodes(self) -> tuple[str, ...]:
        """The nodes whose values a router is given, parent by parent and node by node."""
        return (self.answer,) if self.features is None else (self.answer, self.features)


class Choice(nn.Module):
    """The answers of the parent with the largest score. Takes ``P`` values of an output of ``dims`` dimensions, then
    ``P`` of each node of :meth:`Places.nodes`. With ``labels`` the answers, along ``axis``, go to the union of the
    classes, as log-probabilities."""

    def __init__(
        self,
        scorer: nn.Module,
        members: Sequence[int],
        dims: int,
        places: Places | None = None,
        labels: LabelSpace | None = None,
    ) -> None:
        super().__init__()
        self.scorer, self.parents, self.dims = scorer, len(members), dims
        self.places = places if labels is not None else None
        if labels is not None and places is not None:
            for i, p in enumerate(members):
                own = torch.zeros(len(labels.maps[p]), labels.size)
                own[torch.arange(len(own)), list(labels.maps[p])] = 1.0
                self.register_buffer(f"places_{i}", own)
                self.register_buffer(f"foreign_{i}", FLOOR * (1 - own.sum(0)))

    def forward(self, *values: Tensor) -> Tensor:
        """The chosen parent's value, sample by sample."""
        chosen = F.one_hot(self.scorer.forward(*values[self.parents :]).argmax(1), self.parents).to(torch.float32)
        total: Tensor | None = None
        for i, value in enumerate(values[: self.parents]):
            taken = chosen[:, i].reshape([-1] + [1] * (self.dims - 1)) * self._united(i, value)
            total = taken if total is None else total + taken
        assert total is not None
        return total

    def _united(self, i: int, value: Tensor) -> Tensor:
        if self.places is None:
            return value
        logs = self.places.logs(value).clamp_min(FLOOR).movedim(self.places.axis, -1)
        united = logs @ self.get_buffer(f"places_{i}") + self.get_buffer(f"foreign_{i}")
        if self.places.normalised:
            united = united.exp()
        return united.movedim(-1, self.places.axis)


class Confidence(nn.Module):
    """The largest log-probability of each parent: samples x parents."""

    def __init__(self, places: Places, parents: int) -> None:
        super().__init__()
        self.places, self.parents = places, parents

    def forward(self, *values: Tensor) -> Tensor:
        """Scores."""
        best = [self.places.logs(value).amax(self.places.axis) for value in values[: self.parents]]
        if self.places.dims > 2:
            best = [rows.flatten(1).mean(1) for rows in best]
        return torch.stack(best, 1)


class Distance(nn.Module):
    """Minus the squared distance of the direction to the nearest class, relative to what is usual for the parent."""

    def __init__(self, places: Places, centres: Sequence[Tensor], usual: Sequence[float], dims: int) -> None:
        super().__init__()
        self.neurons, self.usual, self.dims = places.neurons, tuple(usual), dims
        self.parents = len(centres)
        for p, centre in enumerate(centres):
            self.register_buffer(f"centre_{p}", centre)
            self.register_buffer(f"square_{p}", centre.square().sum(1))

    def forward(self, *values: Tensor) -> Tensor:
        """Scores."""
        found = []
        for p in range(self.parents):
            rows = F.normalize(_pooled(values[self.parents + p], self.neurons, self.dims), dim=1)
            square = rows.square().sum(1, keepdim=True) + self.get_buffer(f"square_{p}")
            distance = square - 2 * rows @ self.get_buffer(f"centre_{p}").transpose(0, 1)
            found.append(-distance.amin(1) / self.usual[p])
        return torch.stack(found, 1)


class Gate(nn.Module):
    """A linear function of all parents' log-probabilities."""

    def __init__(self, places: Places, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.places, self.parents = places, len(bias)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, *values: Tensor) -> Tensor:
        """Scores."""
        logs = [self.places.logs(value).clamp_min(FLOOR) for value in values[: self.parents]]
        rows = torch.cat([_pooled(log, self.places.axis, self.places.dims) for log in logs], 1)
        return F.linear(rows, self.get_buffer("weight"), self.get_buffer("bias"))


def _pooled(value: Tensor, axis: int | None, dims: int) -> Tensor:
    """Samples x neurons, the mean over positions."""
    if dims == 2 or axis is None:
        return value
    return value.movedim(axis, 1).flatten(2).mean(2)


# ------------------------------------------------------------------------------------------------ making one


def find_places(pairs: Correspondence) -> Places:
    """What there is to route by. Raises :class:`MethodError` for networks without an output between classes."""
    meaning = pairs.reference.axes.values
    for node in output_nodes(pairs.reference.program.module.graph):
        if node.name not in meaning:
            continue
        axis = class_axis(tuple(layout.size for layout in meaning[node.name].dims))
        if axis is None:
            continue
        levels = pairs.reference.partition.levels
        last = next(level for level in levels if level.boundary == node.name)
        found = next((b for b in levels if b.boundary in last.inputs and b.neuron_axis is not None), None)
        features, neurons = (None, None) if found is None else (found.boundary, found.neuron_axis)
        normalised = gives_probabilities(pairs.reference, node.name)
        return Places(node.name, axis, len(meaning[node.name].dims), normalised, features, neurons)
    raise MethodError(
        "method 'select' chooses the parent that is surest of a class, but no output of the parents decides between "
        "classes; take 'ensemble'."
    )


def check_router(name: str) -> None:
    """Raise :class:`MethodError` for an unknown router."""
    if name not in get_args(RouterName):
        raise MethodError(f"unknown router {name!r}: {nearest(name, get_args(RouterName))}")


def gives_probabilities(analysis: Analysis, node: str) -> bool:
    """Whether a node's value on the example is probabilities along its class axis, not logits."""
    program = analysis.program
    with torch.no_grad():
        value = capture(program.module, (node,)).eval()(*program.example)[0]
    axis = class_axis(value.shape)
    return axis is not None and bool((value >= 0).all()) and bool((value.sum(axis) - 1).abs().max() < 1e-3)


def make_scorer(
    router: str,
    pairs: Correspondence,
    places: Places,
    samples: Samples | None,
    union: LabelEnsemble | None,
    *,
    members: Sequence[int],
    device: torch.device,
) -> nn.Module:
    """The scorer of a router; those that need it are fitted to ``samples``. Raises :class:`MethodError` for an unknown
    router, one that has no data and one that has no features to look at."""
    check_router(router)
    if router == "confidence":
        return Confidence(places, len(members))
    if samples is None:
        raise MethodError(f"router {router!r} is fitted to calibration data: give some, or take 'confidence'")
    if router == "distance" and places.features is None:
        raise MethodError("router 'distance' needs features that the last level reads, but it reads the input alone")
    seen = _seen(pairs, places, samples, members, device)
    logs = [_pooled(places.logs(z).clamp_min(FLOOR), places.axis, places.dims) for z in seen.answers]
    labels = None if union is None else union.labels
    own = [log.exp() if labels is None else labels.spread(p, log.exp()) for log, p in zip(logs, members, strict=True)]
    mean = torch.stack(own).mean(0) if union is None or len(members) < len(union.weights) else union.probabilities(logs)
    if router == "gate":
        return Gate(places, *_train_gate(logs, own, _goal(mean, seen.labels)))
    dims = len(pairs.reference.axes.values[str(places.features)].dims)
    rows = [F.normalize(_pooled(f, places.neurons, dims), dim=1) for f in seen.features]
    return Distance(places, *_centres(rows, [chance * mean for chance in own]), dims)


@dataclass(frozen=True, slots=True)
class _Seen:
    answers: list[Tensor]
    features: list[Tensor]
    labels: Tensor | None


def _seen(
    pairs: Correspondence, places: Places, samples: Samples, members: Sequence[int], device: torch.device
) -> _Seen:
    """The members' values on the first samples."""
    modules = [capture(placed(pairs.parents[p].program.module, device), places.nodes()) for p in members]
    found: list[list[tuple[Tensor, ...]]] = [[] for _ in members]
    marks: list[Tensor] = []
    for inputs, labels in batches(samples, 256, torch.Generator().manual_seed(0)):
        with torch.no_grad():
            for own, module in zip(found, modules, strict=True):
                own.append(tuple(value.float().cpu() for value in module(*to_device(inputs, device))))
        if labels is not None and labels.ndim == 1 and not labels.is_floating_point():
            marks.append(labels)
        if sum(len(x[0]) for x in found[0]) >= SEEN:
            break
    columns = [[torch.cat(parts) for parts in zip(*own, strict=True)] for own in found]
    whole = bool(marks) and sum(map(len, marks)) == len(columns[0][0])
    features = [column[1] for column in columns] if places.features is not None else []
    return _Seen([column[0] for column in columns], features, torch.cat(marks).cpu() if whole else None)


def _centres(rows: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[list[Tensor], list[float]]:
    """Each parent's mean features per class, samples weighted, and how far they usually are from the nearest."""
    centres, usual = [], []
    for own, weight in zip(rows, weights, strict=True):
        mass = weight.sum(0)
        kept = mass > 1e-3 * mass.sum()
        centre = (weight.T @ own)[kept] / mass[kept][:, None]
        distance = torch.cdist(own, centre).square().amin(1)
        centres.append(centre)
        usual.append(max(float((weight.sum(1) * distance).sum() / weight.sum()), 1e-12))
    return centres, usual


def _goal(mean: Tensor, given: Tensor | None) -> Tensor:
    """Samples x classes, one-hot: the labels where there are any, and else what the parents say together. (The mean of
    probabilities itself would be met by a gate that never decides.)"""
    said = mean.argmax(1)
    if given is not None:
        said = torch.where((given >= 0) & (given < mean.shape[1]), given, said)
    return F.one_hot(said, mean.shape[1]).to(mean)


def _train_gate(logs: Sequence[Tensor], own: Sequence[Tensor], goal: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and bias of the gate: Adam on the cross-entropy of the mixture to the goal. ``logs`` are the parents'
    log-probabilities, ``own`` their probabilities over all classes."""
    rows = torch.cat(list(logs), 1)
    spread, middle = rows.std(0).clamp_min(1e-6), rows.mean(0)
    rows = (rows - middle) / spread
    chances = torch.stack(list(own), 1)
    weight = torch.zeros(len(logs), rows.shape[1], requires_grad=True)
    bias = torch.zeros(len(logs), requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], RATE)
    for step in range(STEPS):
        share = F.linear(rows, weight, bias).softmax(1)
        mixed = torch.einsum("np,npc->nc", share, chances).clamp_min(1e-6)
        loss = -(goal * mixed.log()).sum(1).mean() + DECAY * weight.square().sum()
        descend(optimizer, loss, RATE * falling("cosine", step / STEPS))
    weight = (weight / spread).detach()
    return weight, bias.detach() - weight @ middle
