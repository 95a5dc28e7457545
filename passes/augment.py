"""Enlarge the calibration set without labels: transformed inputs, answered by the parents themselves.

A transformed image needs no label, since every target is recomputed from the parents on the image as it is then.

* ``shift``: whole pixels, up to a tenth of the side, borders repeated.
* ``flip``: left to right, half of the samples. Not for digits or letters; on request only.
* ``mix``: half of the batch becomes ``c x_i + (1 - c) x_j`` with ``c`` uniform (Zhang et al., mixup, 2018).

``auto`` shifts and mixes where the input is images (``B x C x H x W`` floats with at most 16 channels and both sides
at least 8), and does nothing elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fxfuse.errors import MethodError, nearest

Transformation = Literal["shift", "flip", "mix"]
KNOWN: tuple[Transformation, ...] = ("shift", "flip", "mix")
REACH = 10
"""An image is shifted by at most its side divided by this."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """Sample ``i`` became ``share[i] * x[i] + (1 - share[i]) * x[partner[i]]``."""

    share: Tensor
    partner: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """The same mixture of other quantities of the samples (labels as probabilities, say)."""
        share = self.share.to(x.device, x.dtype).reshape(-1, *([1] * (x.ndim - 1)))
        return share * x + (1 - share) * x[self.partner.to(x.device)]


def choose(kinds: str | Sequence[str], inputs: Sequence[Tensor]) -> tuple[Transformation, ...]:
    """The transformations that ``kinds`` (``auto``, ``none`` or names) stands for, given example inputs.

    Raises ``MethodError`` for an unknown name, or one that the inputs do not allow.
    """
    images = bool(inputs) and all(_is_image(x) for x in inputs)
    if kinds == "auto":
        return ("shift", "mix") if images else ()
    names = [] if kinds == "none" else [kinds] if isinstance(kinds, str) else list(kinds)
    for name in names:
        if name not in KNOWN:
            raise MethodError(f"unknown transformation {name!r}: {nearest(name, KNOWN)}")
        if name != "mix" and not images:
            raise MethodError(f"augment: {name!r} needs images (batch x channels x height x width) as inputs")
        if name == "mix" and not all(x.is_floating_point() for x in inputs):
            raise MethodError("augment: 'mix' needs floating-point inputs")
    return tuple(kind for kind in KNOWN if kind in names)


def transform(
    inputs: tuple[Tensor, ...], kinds: Sequence[Transformation], generator: torch.Generator
) -> tuple[tuple[Tensor, ...], Mixture]:
    """Transformed copies of ``inputs`` and how they were mixed. Draws come from ``generator`` (on the CPU)."""
    count = len(inputs[0])
    if "shift" in kinds:
        inputs = _shifted(inputs, generator)
    if "flip" in kinds:
        turned = torch.rand(count, generator=generator) < 0.5
        inputs = tuple(torch.where(turned.to(x.device)[:, None, None, None], x.flip(-1), x) for x in inputs)
    share, partner = torch.ones(count), torch.arange(count)
    if "mix" in kinds:
        half = count // 2
        share[:half] = torch.rand(half, generator=generator)
        partner[:half] = torch.randperm(count, generator=generator)[:half]
    mixture = Mixture(share, partner)
    return (tuple(mixture.apply(x) for x in inputs) if "mix" in kinds else inputs), mixture


def _is_image(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_floating_point() and x.shape[1] <= 16 and min(x.shape[2:]) >= 8


def _shifted(inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    out = []
    for x in inputs:
        count, _, height, width = x.shape
        index = []
        for size in (height, width):
            reach = max(1, size // REACH)
            by = torch.randint(-reach, reach + 1, (count, 1), generator=generator)
            index.append((torch.arange(size) + by).clamp(0, size - 1).to(x.device))
        rows = index[0][:, None, :, None].expand(-1, x.shape[1], -1, width)
        columns = index[1][:, None, None, :].expand(-1, x.shape[1], height, -1)
        out.append(x.gather(2, rows).gather(3, columns))
    return tuple(out)
