"""Feature ablation: what a neuron's silence costs the answer.

For every neuron u of an observed value ``h``, and ``F`` the parent's answer (:mod:`fxfuse.passes.importance`),

    A_u(x) = | F(x) - F(x with h_u = 0 at all positions) |.

It takes one forward pass per neuron, where the gradient-based importances take one for all: for small networks, and as
a check of the others. A neuron is one combination of indices along all factors of the value's layout that are neurons
(channel c of a map at all its pixels; entry d of head h at all tokens).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from fxfuse.passes.observe import Observer, Visit, ignore
from fxfuse.types import Axes, Layout, Leaf, Product, TensorAxes

PerSample = Callable[[Any], Tensor]
"""The answer of every sample, from the network's output."""


def units(axes: TensorAxes, shape: torch.Size) -> tuple[Tensor, int]:
    """The neuron that each element of a value of ``shape`` belongs to (size 1 along dimensions without neurons), and
    how many neurons there are."""
    total = torch.zeros([1] * len(shape), dtype=torch.long)
    count = 1
    for dim, (layout, size) in enumerate(zip(axes.dims, shape, strict=True)):
        if layout.size != size:  # the batch: another number of samples than was traced
            continue
        ids, number = _indices(layout)
        if number > 1:
            view = [1] * len(shape)
            view[dim] = size
            total = total * number + ids.reshape(view)
            count *= number
    return total, count


def _indices(layout: Layout) -> tuple[Tensor, int]:
    """Along one dimension: the neuron of every index, and how many there are."""
    if isinstance(layout, Leaf):
        number = 1 if layout.space is None else layout.size
        return (torch.arange(layout.size) if number > 1 else torch.zeros(layout.size, dtype=torch.long)), number
    found = [_indices(part) for part in layout.parts]
    if isinstance(layout, Product):
        ids, number = found[0]
        for more, own in found[1:]:
            ids, number = (ids[:, None] * own + more[None, :]).flatten(), number * own
        return ids, number
    offsets = torch.tensor([0, *(number for _, number in found)]).cumsum(0)
    return torch.cat([ids + offset for (ids, _), offset in zip(found, offsets[:-1], strict=True)]), int(offsets[-1])


def ablate(
    observer: Observer, axes: Axes, inputs: tuple[Tensor, ...], values: dict[str, Tensor], answer: PerSample
) -> dict[str, Tensor]:
    """``A_u`` of every observed value, spread evenly over the neuron's elements of each sample; ``values`` are the
    observed ones."""
    whole = answer(observer.observe(inputs, ignore))
    out = {}
    for name, value in values.items():
        ids, count = units(axes.values[name], value.shape)
        ids = ids.to(value.device)
        scores = torch.zeros_like(value)
        for unit in range(count):
            own = (ids == unit).expand(value.shape)
            cost = (whole - answer(observer.observe(inputs, ignore, rule=_Silence(name, own)))).abs()
            elements = own.flatten(1).sum(1).clamp(min=1)
            share = (cost / elements).reshape(-1, *[1] * (value.ndim - 1)).to(value.dtype)
            scores = torch.where(own, share, scores)
        out[name] = scores
    return out


class _Silence:
    """Makes some elements of one node's value zero."""

    def __init__(self, name: str, own: Tensor) -> None:
        self._name, self._own = name, own

    def __call__(self, node: fx.Node, value: Any, source: Any) -> Any:
        """The node's value, changed if it is the node."""
        del source
        return torch.where(self._own, torch.zeros_like(value), value) if node.name == self._name else value


def observed_values(observer: Observer, inputs: tuple[Tensor, ...], visit: Visit) -> tuple[Any, dict[str, Tensor]]:
    """The output and the observed values of a plain run."""
    found: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> None:
        visit(name, value)
        found[name] = value

    return observer.observe(inputs, keep), found
