"""Gaussian posteriors over weights: diagonal precisions from the Fisher information, and their divergences.

Laplace's approximation around trained weights ``m``: with ``F`` the diagonal of the Fisher information per sample,
``N`` the number of samples and a prior as wide as the weights are,

    L = N F + 1 / mean(m^2),            F = E_x E_{y ~ p(y|x)} [ (d log p(y|x) / d m)^2 ].

``y`` is drawn from the network's own answer (one draw per sample; a unit Gaussian around outputs without classes), so
this is the true Fisher information and not the empirical one, and needs no labels.

Two neurons with weights ``m, m'`` and precisions ``L, L'``, features f in one frame
(:mod:`fxfuse.passes.weight_statistics`), have the divergence

    KL(i || j) = 1/2 sum_f [ L'_f / L_f - 1 - log(L'_f / L_f) + L'_f (m_f - m'_f)^2 ]

which is made of matrix products: no neurons x neurons x features are ever there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fxfuse.errors import DataError, MethodError
from fxfuse.label_space import class_axis
from fxfuse.passes.correspond import Correspondence
from fxfuse.passes.observe import placed
from fxfuse.passes.weight_statistics import (
    Foreign,
    Part,
    frames_of,
    parameter_names,
    parent_slices,
)
from fxfuse.progress import Progress, QuietProgress
from fxfuse.samples import Samples
from fxfuse.types import Grouping, Space, SpaceStatistics

FISHER_SAMPLES = 128
"""How many samples tell the Fisher information, one backward pass each."""

Precisions = tuple[Mapping[str, Tensor], ...]
"""One per parent: a positive tensor for every parameter, under the reference's names."""


def fisher_precisions(
    pairs: Correspondence,
    samples: Samples,
    *,
    device: torch.device,
    count: int = FISHER_SAMPLES,
    seed: int = 0,
    progress: Progress | None = None,
) -> Precisions:
    """Precisions of every parent's parameters (module docstring's ``L``) from ``count`` evenly spread samples."""
    chosen = torch.linspace(0, len(samples) - 1, min(count, len(samples))).round().long()
    names = parameter_names(pairs)
    out = []
    with (progress or QuietProgress()).start(len(chosen) * len(pairs.parents), "Fisher information") as bar:
        for p, parent in enumerate(pairs.parents):
            module = placed(parent.program.module, device)
            known = dict(module.named_parameters(remove_duplicate=False))
            tensors = {name: known[pairs.names[p][name]].requires_grad_() for name in names}
            sums = {name: torch.zeros_like(x) for name, x in tensors.items()}
            generator = torch.Generator().manual_seed(seed)
            for index in chosen.tolist():
                inputs, _ = samples.take(torch.tensor([index]))
                total = _log_likelihood(module(*(x.to(device) for x in inputs)), generator)
                slopes = torch.autograd.grad(total, list(tensors.values()), allow_unused=True)
                for name, slope in zip(sums, slopes, strict=True):
                    if slope is not None:
                        sums[name] += slope.square()
                bar.advance()
            out.append({name: _precision(tensors[name], sums[name], len(samples) / len(chosen)) for name in names})
    return tuple(out)


def _precision(x: Tensor, squares: Tensor, factor: float) -> Tensor:
    width = x.detach().square().mean().clamp(min=1e-12)
    return (squares * factor + 1 / width).detach().cpu()


def _log_likelihood(output: object, generator: torch.Generator) -> Tensor:
    """``log p(y|x)`` of a drawn ``y``, over all outputs."""
    total: Tensor | None = None
    for leaf in tree_leaves(output):
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or not leaf.requires_grad:
            continue
        axis = class_axis(leaf.shape)
        if axis is None:
            noise = torch.randn(leaf.shape, generator=generator).to(leaf)
            part = (leaf * noise).sum()
        else:
            logs = leaf.movedim(axis, -1).flatten(0, -2).log_softmax(-1)
            drawn = torch.multinomial(logs.detach().exp().cpu(), 1, generator=generator).to(leaf.device)
            part = logs.gather(1, drawn).sum()
        total = part if total is None else total + part
    if total is None:
        raise DataError("the network has no output that depends on its weights, so there is no Fisher information")
    return total


def check_precisions(pairs: Correspondence, given: Sequence[Mapping[str, Tensor]]) -> Precisions:
    """Precisions as the user gives them, one mapping per parent under that parent's own names, as they are needed.

    Raises :class:`MethodError` where one is missing, of another shape, or not positive and finite.
    """
    if len(given) != len(pairs.parents):
        raise MethodError(
            f"precisions must have one entry per parent. Got {len(given)} for {len(pairs.parents)} parents."
        )
    out = []
    for parent, names, own in zip(pairs.parents, pairs.names, given, strict=True):
        state = parent.program.module.state_dict()
        found = {}
        for name in parameter_names(pairs):
            x = own.get(names[name])
            if x is None or x.shape != state[names[name]].shape:
                has = "none" if x is None else f"one of shape {list(x.shape)}"
                raise MethodError(
                    f"{parent.program.name} needs a precision of shape {list(state[names[name]].shape)} for "
                    f"{names[name]}. Got {has}."
                )
            if not bool(torch.isfinite(x).all()) or bool((x <= 0).any()):
                raise MethodError(
                    f"precisions must be positive and finite. Those of {names[name]} in {parent.program.name} are not."
                )
            wide = torch.promote_types(state[names[name]].dtype, torch.float32)
            found[name] = x.detach().to("cpu", wide)
        out.append(found)
    return tuple(out)


def with_divergence(
    stats: SpaceStatistics,
    pairs: Correspondence,
    space: Space,
    groupings: Mapping[int, Grouping],
    precisions: Precisions,
    *,
    part: Part,
    foreign: Foreign,
) -> SpaceStatistics:
    """The statistics of a space with the symmetrised divergence of its neurons' posteriors."""
    scales = dict.fromkeys(parameter_names(pairs), 1.0)
    spaces = pairs.reference.axes.spaces
    means, spreads = [], []
    for p, parent in enumerate(pairs.parents):
        frames = frames_of(groupings, spaces, p)
        own = parent.axes.spaces[space.id]
        means.append(parent_slices(pairs, p, own, frames, scales, part=part, foreign=foreign))
        spreads.append(parent_slices(pairs, p, own, frames, scales, part=part, foreign=foreign, tensors=precisions[p]))
    total: Tensor | None = None
    for rows in zip(zip(*means, strict=True), zip(*spreads, strict=True), strict=True):
        m, spread = (torch.cat([slices.x for slices in same], 1).double() for same in rows)
        found = _divergence(m, spread.clamp(min=1e-12))
        total = found if total is None else total + found
    return stats if total is None else replace(stats, divergence=(total + total.T) / 2)


def _divergence(m: Tensor, precision: Tensor) -> Tensor:
    """``KL(i || j)`` for columns i, j of features x neurons."""
    logs = precision.log().sum(0)
    ratio = (1 / precision).T @ precision  # i, j: sum_f L'_f / L_f
    moved = precision * m
    distance = m.square().T @ precision - 2 * m.T @ moved + (moved * m).sum(0)[None, :]
    kl: Tensor = 0.5 * (ratio - len(m) - (logs[None, :] - logs[:, None]) + distance)
    return kl.clamp(min=0)
