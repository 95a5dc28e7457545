"""Blocks of neurons as the neurons of an outer space: heads of an attention layer, groups of a grouped convolution.

Let ``A_x`` (``n_x`` x rows) be the activations of block x. How its neurons are ordered is nobody's business outside, so
blocks are compared after the best alignment, over injections pi of the smaller block into the larger:

    K_xy = max_pi sum_i <a_x,i , a_y,pi(i)>,        K_xx = ||A_x||^2,

which a linear assignment on the block ``G_xy`` of the Gram matrix gives. ``K_xx + K_yy - 2 K_xy`` is the least squared
distance of x to a reordering of y, so it is never negative. K plays the Gram matrix of the outer space. It need not be
positive semi-definite, as a Gram matrix is; negative eigenvalues are cut off, which keeps copies at distance zero.
Several inner spaces of one outer space (query-key pairs and values, say) add up, each scaled to mean energy one.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fxfuse.errors import GraphError
from fxfuse.products import Products
from fxfuse.types import SpaceStatistics

FEW = 4
"""Neurons in a block up to which all orders are tried: 24 sums over whole matrices take less time than an assignment
for every pair of blocks."""


def block_slices(stats: SpaceStatistics) -> list[list[slice]]:
    """Where each block of each parent lies on the stacked axis: ``[parent][block]``."""
    slices, start = [], 0
    for width, blocks in zip(stats.widths, stats.outer_widths, strict=True):
        slices.append([slice(start + b * width, start + (b + 1) * width) for b in range(blocks)])
        start += width * blocks
    return slices


def outer_statistics(space: int, parts: Sequence[SpaceStatistics]) -> SpaceStatistics:
    """Statistics of an outer space from those of its inner spaces, as an ordinary space with a neuron per block.

    Statistics of the outer space's own values join in as blocks of one neuron: see :func:`as_blocks`. Every part counts
    the same: kernels are scaled to mean energy one, importance (summed within each block) is averaged.
    """
    counts = {part.outer_widths for part in parts}
    if len(counts) != 1:
        raise GraphError(f"inner spaces of space {space} disagree about its neurons: {sorted(counts)}")
    kernels, scores, divergences = [], [], []
    for part in parts:
        kernel = block_kernel(part)
        energy = float(kernel.diagonal().mean())
        kernels.append(kernel / energy if energy > 0 else kernel)
        if part.divergence is not None:
            divergences.append(block_divergence(part))
        importance = part.importance.to("cpu", torch.float64)
        scores.append(torch.stack([importance[block].sum() for parent in block_slices(part) for block in parent]))
    widths = counts.pop()
    importance = torch.stack(scores).mean(0)
    return SpaceStatistics(
        space=space,
        widths=widths,
        outer_widths=(1,) * len(widths),
        rows=max(part.rows for part in parts),
        mean=torch.zeros_like(importance),  # a block has no mean: correlations between blocks are cosines
        products=Products(_nearest_gram(torch.stack(kernels).sum(0))),
        importance=importance,
        divergence=torch.stack(divergences).sum(0) if len(divergences) == len(parts) else None,
    )


def as_blocks(stats: SpaceStatistics) -> SpaceStatistics:
    """An ordinary space's statistics read as those of blocks of one neuron each."""
    return replace(stats, widths=(1,) * len(stats.widths), outer_widths=stats.widths)


def block_kernel(stats: SpaceStatistics) -> Tensor:
    """``K`` over all blocks of all parents, parent after parent; symmetric, float64."""
    gram = stats.gram
    slices = [block for parent in block_slices(stats) for block in parent]
    if all(block.stop - block.start == 1 for block in slices):
        return gram.clone()
    kernel = -_aligned(-gram, slices)
    for x, block in enumerate(slices):
        kernel[x, x] = gram[block, block].trace()
    return kernel


def block_divergence(stats: SpaceStatistics) -> Tensor:
    """Divergences of blocks: those of their neurons, summed over the best alignment."""
    assert stats.divergence is not None
    slices = [block for parent in block_slices(stats) for block in parent]
    found = _aligned(stats.divergence.to("cpu", torch.float64), slices)
    return found.fill_diagonal_(0.0)


def _aligned(cost: Tensor, slices: Sequence[slice]) -> Tensor:
    """The least total cost of an alignment for every pair of blocks; the diagonal means nothing."""
    width, count = slices[0].stop - slices[0].start, len(slices)
    if width <= FEW and len(cost) == width * count and all(block.stop - block.start == width for block in slices):
        pairs = cost.reshape(count, width, count, width).movedim(2, 1)
        orders = itertools.permutations(range(width))
        least = torch.stack([pairs[:, :, range(width), order].sum(-1) for order in orders]).amin(0)
        return torch.minimum(least, least.T)  # the same sums in another order
    entries = cost.numpy()
    found = np.zeros((count, count))
    for x, first in enumerate(slices):
        rows = entries[first]
        for y in range(x + 1, count):
            block = rows[:, slices[y]]
            found[x, y] = found[y, x] = block[linear_sum_assignment(block)].sum()
    return torch.from_numpy(found)


def _nearest_gram(kernel: Tensor) -> Tensor:
    """The kernel without its negative eigenvalues; itself where it has none worth the name."""
    values, vectors = torch.linalg.eigh(kernel)
    if float(values[0]) >= -1e-12 * float(values[-1].clamp(min=0)):
        return kernel
    clipped: Tensor = (vectors * values.clamp(min=0)) @ vectors.T
    return (clipped + clipped.T) / 2


def member_statistics(
    stats: SpaceStatistics, members: Sequence[tuple[int, int]], weights: Sequence[float]
) -> SpaceStatistics:
    """Statistics of some blocks ``(parent, block)`` of an inner space, as an ordinary space with a parent per block.

    Importance is rescaled to sum to ``weights`` block by block, as the record's contract wants it.
    """
    slices = block_slices(stats)
    index = torch.cat([torch.arange(slices[p][b].start, slices[p][b].stop) for p, b in members])
    widths = tuple(stats.widths[p] for p, _ in members)
    importance = stats.importance.to("cpu", torch.float64)[index]
    shares = []
    for part, weight in zip(torch.split(importance, list(widths)), weights, strict=True):
        total = float(part.sum())
        shares.append(part * (weight / total) if total > 0 else torch.full_like(part, weight / len(part)))
    return SpaceStatistics(
        space=stats.space,
        widths=widths,
        outer_widths=(1,) * len(members),
        rows=stats.rows,
        mean=stats.mean.to("cpu", torch.float64)[index],
        products=Products(stats.gram[index][:, index]),
        importance=torch.cat(shares),
        divergence=None if stats.divergence is None else stats.divergence.to("cpu", torch.float64)[index][:, index],
    )
