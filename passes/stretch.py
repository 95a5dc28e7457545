"""The meaning of a value for another number of samples than its network was traced with."""

import torch

from fxfuse.types import Axes, Concat, Layout, Leaf, Product, TensorAxes


def traced_batch(axes: Axes, graph: torch.fx.Graph) -> int:
    """The batch size that the axes speak of."""
    for node in graph.nodes:
        if node.op == "placeholder" and node.name in axes.values and axes.values[node.name].dims:
            return axes.values[node.name].dims[0].size
    return 1


def at_shape(axes: TensorAxes, shape: torch.Size, batch: int) -> TensorAxes:
    """The meaning of a value for another number of samples; ``batch`` is the number that ``axes`` speaks of."""
    dims = tuple(
        layout if layout.size == size else _stretched(layout, size, batch)
        for layout, size in zip(axes.dims, shape, strict=True)
    )
    return TensorAxes(dims, axes.reads)


def _stretched(layout: Layout, size: int, batch: int) -> Layout:
    if isinstance(layout, Leaf):
        return Leaf(size) if layout.space is None else layout
    if isinstance(layout, Concat):
        return Concat(tuple(_stretched(part, part.size * size // layout.size, batch) for part in layout.parts))
    parts = list(layout.parts)
    for i, part in enumerate(parts):
        if not _has_neurons(part) and part.size % batch == 0:
            parts[i] = Leaf(part.size * size // layout.size)
            break
    return Product(tuple(parts))


def _has_neurons(layout: Layout) -> bool:
    if isinstance(layout, Leaf):
        return layout.space is not None
    return any(_has_neurons(part) for part in layout.parts)
