"""Activations made for the solvers' tests, their statistics, and the checks that all of them must pass."""

from itertools import pairwise

import torch
from torch import Tensor

from fxfuse.products import Products
from fxfuse.types import Grouping, SpaceStatistics


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def neurons(width: int, seed: int, rows: int = 60) -> Tensor:
    """Well-separated rectified activations, ``width x rows``, float64."""
    return torch.randn(width, rows, generator=generator(seed), dtype=torch.float64).relu()


def statistics(parents: list[Tensor], weights: tuple[float, ...], importance: list[Tensor] | None = None):
    """Statistics as calibration computes them; importance is uniform unless given (any scale)."""
    scores = importance or [torch.ones(len(a), dtype=torch.float64) for a in parents]
    stacked = torch.cat(parents)
    return SpaceStatistics(
        space=3,
        widths=tuple(len(a) for a in parents),
        outer_widths=(1,) * len(parents),
        rows=stacked.shape[1],
        mean=stacked.mean(1),
        products=Products(stacked @ stacked.T / stacked.shape[1]),
        importance=torch.cat([w * s / s.sum() for w, s in zip(weights, scores, strict=True)]),
    )


def fused(grouping: Grouping, parents: list[Tensor]) -> Tensor:
    return sum(m @ a for m, a in zip(grouping.merge, parents, strict=True))


def brute_error(grouping: Grouping, parents: list[Tensor], importance: Tensor) -> float:
    """The documented grouping error, on the activations themselves."""
    read = torch.cat(grouping.unmerge) @ fused(grouping, parents)
    stacked = torch.cat(parents)
    return float((importance * (stacked - read).pow(2).sum(1)).sum() / (importance * stacked.pow(2).sum(1)).sum())


def same_rows(first: Tensor, second: Tensor, tolerance: float = 1e-9) -> bool:
    """Whether two matrices have the same rows in any order."""
    distance = torch.cdist(first, second)
    return (
        first.shape == second.shape
        and bool((distance.min(0).values < tolerance).all())
        and bool((distance.min(1).values < tolerance).all())
    )


def check_shapes(grouping: Grouping, widths: tuple[int, ...], target: int) -> None:
    """Exact widths, rows that sum to 1, no fused neuron without a part; unmerge rows that sum to 1 at most."""
    assert [tuple(m.shape) for m in grouping.merge] == [(target, n) for n in widths]
    assert [tuple(u.shape) for u in grouping.unmerge] == [(n, target) for n in widths]
    merge, unmerge = torch.cat(grouping.merge, 1), torch.cat(grouping.unmerge)
    assert merge.dtype == torch.float64
    torch.testing.assert_close(merge.sum(1), torch.ones(target, dtype=torch.float64), rtol=0, atol=1e-9)
    assert bool((merge >= 0).all())
    assert bool((unmerge >= 0).all())
    sums = unmerge.sum(1)
    assert bool(((sums - 1).abs() < 1e-9).logical_or(sums == 0).all())


def linear_net(widths: tuple[int, ...], seed: int) -> list[Tensor]:
    """Weights of an MLP without bias: ``widths[0] -> ... -> widths[-1]``."""
    random = generator(seed)
    return [torch.randn(o, i, generator=random, dtype=torch.float64) / i**0.5 for i, o in pairwise(widths)]


def run_net(net: list[Tensor], x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Outputs (classes x rows) and the hidden activations (neurons x rows)."""
    hidden = []
    for weight in net[:-1]:
        x = (weight @ x).relu()
        hidden.append(x)
    return net[-1] @ x, hidden


def rewrite_net(nets: list[list[Tensor]], groupings: list[Grouping], weights: tuple[float, ...]) -> list[Tensor]:
    """``W = sum_p M_p W_p U_p`` with input pinned and output averaged: what the rewrite pass does, for an MLP."""
    result = []
    for layer in range(len(nets[0])):
        total = 0
        for p, net in enumerate(nets):
            weight = net[layer]
            if layer > 0:
                weight = weight @ groupings[layer - 1].unmerge[p]
            weight = groupings[layer].merge[p] @ weight if layer < len(groupings) else weights[p] * weight
            total = total + weight
        result.append(total)
    return result


def permute_net(net: list[Tensor], seed: int) -> list[Tensor]:
    """The same function with its hidden neurons in another order."""
    random = generator(seed)
    net = [weight.clone() for weight in net]
    for layer in range(len(net) - 1):
        order = torch.randperm(len(net[layer]), generator=random)
        net[layer] = net[layer][order]
        net[layer + 1] = net[layer + 1][:, order]
    return net


def block_statistics(parents, space=1, importance=None):
    """``parents``: one tensor (blocks x neurons x rows) each."""
    stacked = torch.cat([a.flatten(0, 1) for a in parents])
    n = len(stacked)
    return SpaceStatistics(
        space=space,
        widths=tuple(a.shape[1] for a in parents),
        outer_widths=tuple(a.shape[0] for a in parents),
        rows=stacked.shape[1],
        mean=stacked.mean(1),
        products=Products(stacked @ stacked.T / stacked.shape[1]),
        importance=torch.full((n,), 1 / n, dtype=torch.float64) if importance is None else importance,
    )


def blocks(count, width, seed):
    return neurons(count * width, seed).unflatten(0, (count, width))


def shuffled(a, seed):
    """Blocks in another order, and each block's neurons in an order of their own."""
    random = generator(seed)
    order = torch.randperm(len(a), generator=random)
    return torch.stack([a[h][torch.randperm(a.shape[1], generator=random)] for h in order]), order
