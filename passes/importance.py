"""How much each neuron matters to its parent's own prediction.

With ``h`` the value of an observed node, ``F`` the parent's answer (below) and ``x`` a sample, the attribution of every
element of ``h`` is

    conductance          | sum_k dF/dh(a_k) (h(a_{k+1}) - h(a_k)) |,   a_k = k / steps, input a_k x   (Dhamdhere)
    gradient-activation  | dF/dh * h |
    deeplift             | m (h - h0) |, h0 its value at 0, m from secants (:mod:`fxfuse.passes.deeplift`)
    feature-ablation     | F(x) - F(x without the neuron) |, one pass per neuron (:mod:`fxfuse.passes.ablation`)
    fisher               ( dF/dh * h )^2      (second-order cost of removing it, Theis)

summed over positions, averaged over samples. All observed nodes share the backward passes: one per step. Conductance
runs along the straight line from 0 to ``x`` and takes the gradient at the left end of each step. Eight steps rank
the neurons of a trained VGG as fifty do (Spearman 0.99 and more, layer by layer), at a sixth of the cost. Three
importances do not look at data: ``uniform``; ``magnitude``, the mean over a neuron's parameters of the squared norm
of its slice (Neuron Transplantation); and ``norm-product``, the norm of what makes the neuron times the norm of what
reads it.

``F`` is the sum over samples of the logit of the predicted class at ``x``, or of the label where data has labels that
fit. Outputs without a batch of logits are treated alike: every floating-point tensor of the output adds, for each
sample and position, the entry that is largest at ``x`` along its class axis (:func:`class_axis`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fxfuse.errors import MethodError, nearest
from fxfuse.label_space import class_axis
from fxfuse.layouts import neurons
from fxfuse.passes.ablation import ablate, observed_values
from fxfuse.passes.deeplift import reference_values
from fxfuse.passes.observe import Observer, Rule, Visit
from fxfuse.types import Analysis, Space

ImportanceName = Literal[
    "uniform",
    "conductance",
    "gradient-activation",
    "deeplift",
    "feature-ablation",
    "fisher",
    "magnitude",
    "norm-product",
]

WITHOUT_DATA: tuple[ImportanceName, ...] = ("uniform", "magnitude", "norm-product")
"""Those that look at weights only, if at anything."""

STEPS = 8
"""Steps of the path integral."""

FLOOR = 1e-3
"""The part of a parent's importance that is shared out evenly, so that no neuron has none."""

Attribute = Callable[[Observer, tuple[Tensor, ...], Tensor | None, Visit], dict[str, Tensor]]
"""Runs a parent on a batch, lets ``visit`` see the observed values, and returns attributions shaped like them."""

Choice = tuple[int, Tensor] | None
"""Of one output tensor: its class axis and the chosen entries (size 1 along it); ``None`` if all entries count."""


# ------------------------------------------------------------------------------------------------ the answer


def choose(output: Any, labels: Tensor | None) -> list[Choice]:
    """What to read off each tensor of ``output``, decided at the sample itself."""
    choices: list[Choice] = []
    for leaf in answers(output):
        axis = class_axis(leaf.shape, None if labels is None else labels.shape)
        if axis is None:
            choices.append(None)
            continue
        chosen = leaf.detach().argmax(axis, keepdim=True)
        if labels is not None and labels.shape == chosen.squeeze(axis).shape and not labels.is_floating_point():
            given = labels.unsqueeze(axis).to(chosen)
            chosen = torch.where((given >= 0) & (given < leaf.shape[axis]), given, chosen)
        choices.append((axis, chosen))
    return choices


def answer(output: Any, choices: list[Choice]) -> Tensor | None:
    """``F``, a scalar; ``None`` if the output has no floating-point tensor that depends on the observed values."""
    total: Tensor | None = None
    for leaf, choice in zip(answers(output), choices, strict=True):
        part = leaf.sum() if choice is None else leaf.gather(choice[0], choice[1]).sum()
        if part.requires_grad:
            total = part if total is None else total + part
    return total


def answers(output: Any) -> list[Tensor]:
    """The floating-point tensors of an output."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


# --------------------------------------------------------------------------------------------- attributions


def forward_only(
    observer: Observer, inputs: tuple[Tensor, ...], labels: Tensor | None, visit: Visit
) -> dict[str, Tensor]:
    """No attribution at all: the importance does not depend on data."""
    del labels
    observer.observe(inputs, visit)
    observer.check_finite()
    return {}


def conductance(
    observer: Observer, inputs: tuple[Tensor, ...], labels: Tensor | None, visit: Visit, *, steps: int = STEPS
) -> dict[str, Tensor]:
    """Conductance of every element of every observed value, a left Riemann sum of ``steps`` steps.

    Inputs that are not floating point stay as they are; if all are such, gradient times activation takes its place.
    """
    if not any(x.is_floating_point() for x in inputs):
        return gradient_activation(observer, inputs, labels, visit)
    last: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> None:
        visit(name, value)
        last[name] = value

    choices = choose(observer.observe(inputs, keep), labels)
    observer.check_finite()
    sums: dict[str, Tensor] = {}
    before: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    for k in range(steps + 1):
        if k == steps:
            values = last
        else:
            scaled = tuple(x * (k / steps) if x.is_floating_point() else x for x in inputs)
            values, slopes = _differentiate(observer, scaled, choices)
        for name in gradients:
            part = gradients[name] * (values[name] - before[name])
            sums[name] = sums[name] + part if name in sums else part
        if k < steps:
            before, gradients = values, slopes
    # A network may be undefined somewhere on the way (a division by a norm at 0): such elements say nothing.
    return {name: total.nan_to_num(0.0, 0.0, 0.0).abs_() for name, total in sums.items()}


def gradient_activation(
    observer: Observer,
    inputs: tuple[Tensor, ...],
    labels: Tensor | None,
    visit: Visit,
    *,
    power: int = 1,
) -> dict[str, Tensor]:
    """``|gradient * activation| ** power`` of every element of every observed value."""

    def look(name: str, value: Tensor) -> None:
        visit(name, value.detach())

    values, slopes = _differentiate(observer, inputs, None, labels, look)
    observer.check_finite()
    return {name: (values[name] * slopes[name]).nan_to_num(0.0, 0.0, 0.0).abs_() ** power for name in slopes}


def deeplift(observer: Observer, inputs: tuple[Tensor, ...], labels: Tensor | None, visit: Visit) -> dict[str, Tensor]:
    """DeepLIFT's contribution of every element of every observed value, against the input 0.

    Inputs that are not floating point have no reference; if all are such, gradient times activation takes its place.
    """
    if not any(x.is_floating_point() for x in inputs):
        return gradient_activation(observer, inputs, labels, visit)
    secants, before = reference_values(observer, inputs)

    def look(name: str, value: Tensor) -> None:
        visit(name, value.detach())

    values, slopes = _differentiate(observer, inputs, None, labels, look, secants)
    observer.check_finite()
    return {name: ((values[name] - before[name]) * slopes[name]).nan_to_num(0.0, 0.0, 0.0).abs_() for name in slopes}


def feature_ablation(
    observer: Observer, inputs: tuple[Tensor, ...], labels: Tensor | None, visit: Visit
) -> dict[str, Tensor]:
    """What the silence of each neuron costs the answer, spread evenly over the neuron's elements."""
    if observer.axes is None:
        raise MethodError("feature ablation needs to know which elements are one neuron: give the observer axes")
    output, values = observed_values(observer, inputs, visit)
    observer.check_finite()
    choices = choose(output, labels)

    def per_sample(found: Any) -> Tensor:
        parts = [
            (leaf if choice is None else leaf.gather(choice[0], choice[1])).flatten(1).sum(1)
            for leaf, choice in zip(answers(found), choices, strict=True)
            if leaf.ndim and len(leaf) == len(inputs[0])
        ]
        return torch.stack(parts).sum(0) if parts else torch.zeros(len(inputs[0]))

    return ablate(observer, observer.axes, inputs, values, per_sample)


def _differentiate(
    observer: Observer,
    inputs: tuple[Tensor, ...],
    choices: list[Choice] | None,
    labels: Tensor | None = None,
    visit: Visit | None = None,
    rule: Rule | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Observed values and the gradients of the answer by them, from one forward and one backward pass."""
    live: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> None:
        live[name] = value
        if visit is not None:
            visit(name, value)

    output = observer.observe(inputs, keep, differentiable=True, rule=rule)
    total = answer(output, choose(output, labels) if choices is None else choices)
    values = {name: value.detach() for name, value in live.items()}
    if total is None:
        return values, {name: torch.zeros_like(value) for name, value in values.items()}
    with observer.backward_allowed():
        slopes = torch.autograd.grad(total, list(live.values()), allow_unused=True, materialize_grads=True)
    return values, dict(zip(live, slopes, strict=True))


IMPORTANCES: dict[ImportanceName, Attribute] = {
    "uniform": forward_only,
    "conductance": conductance,
    "gradient-activation": gradient_activation,
    "deeplift": deeplift,
    "feature-ablation": feature_ablation,
    "fisher": partial(gradient_activation, power=2),
    "magnitude": forward_only,
    "norm-product": forward_only,
}
"""What each importance computes on a batch."""


def find_importance(name: str) -> Attribute:
    """The entry of :data:`IMPORTANCES`; raises :class:`MethodError` for an unknown name."""
    for known in get_args(ImportanceName):
        if name == known:
            return IMPORTANCES[known]
    raise MethodError(f"unknown importance {name!r}: {nearest(name, IMPORTANCES)}")


# ------------------------------------------------------------------------------------------------- the scores


def magnitude(parent: Analysis, space: Space) -> Tensor:
    """Mean over the parameters that contain ``space`` of the squared norm of each neuron's slice: ``N`` of them."""
    norms = [norm for _, norm in slice_norms(parent, space)]
    return torch.stack(norms).mean(0) if norms else _even(parent, space)


def slice_norms(parent: Analysis, space: Space) -> list[tuple[bool, Tensor]]:
    """For every parameter that contains ``space``, whether it is written there (makes the neurons; otherwise it reads
    them), and the squared norms of the neurons' slices."""
    found = []
    for name, parameter in parent.program.module.named_parameters():
        axes = parent.axes.state.get(name)
        if axes is not None:
            squares = parameter.detach().double().square()
            parts = [rows.sum(0) for rows in neurons(squares, axes, space)]
            if parts:
                found.append((not any(number == space.id for _, number in axes.reads), torch.stack(parts).sum(0)))
    return found


def norm_product(norms: Sequence[tuple[bool, Tensor]]) -> Tensor:
    """The norm of what makes a neuron times the norm of what reads it, ``N``; where there is only one of the two, that
    one's alone."""
    sides = [[norm for written, norm in norms if written == side] for side in (True, False)]
    sums = [torch.stack(parts).sum(0) for parts in sides if parts]
    return torch.stack(sums).prod(0).sqrt()


def _even(parent: Analysis, space: Space) -> Tensor:
    blocks = 1 if space.outer is None else next(s.size for s in parent.axes.spaces if s.id == space.outer)
    return torch.ones(space.size * blocks, dtype=torch.float64)


def weight_scores(parent: Analysis, space: Space, importance: ImportanceName) -> Tensor:
    """Raw importance from the weights alone: ``magnitude`` or ``norm-product``."""
    if importance == "magnitude":
        return magnitude(parent, space)
    norms = slice_norms(parent, space)
    return norm_product(norms) if norms else _even(parent, space)


def normalise(scores: Tensor, weight: float) -> Tensor:
    """Importance of one parent's neurons (``float64``) from raw scores: sums to ``weight``, nowhere zero.

    Even shares where no neuron has any score.
    """
    scores = scores.double()
    even = torch.full_like(scores, 1.0 / max(len(scores), 1))
    total = float(scores.sum())
    share = scores / total if total > 0 else even
    return weight * ((1.0 - FLOOR) * share + FLOOR * even)
