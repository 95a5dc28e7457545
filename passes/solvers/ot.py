"""Optimal transport to a reference (OTFusion; Singh and Jaggi, 2020).

Parent p's neurons carry the masses ``mu_p``, the reference's ``nu``; the plan ``pi_p`` (``n_p x m``) has them as row
and column sums and costs least, ``sum_ij pi_ij d(a_i, r_j)``. With ``T_p = pi_p diag(1/nu)`` and parents' weights
``w_p``

    merge[p] = w_p T_p',      unmerge[p] = diag(1/mu_p) pi_p,

so each fused neuron is a mean (rows of all merges sum to 1) and each parent neuron is read as a mean (rows sum to 1).
Where the plans are permutations this is the paper's ``W~ = T' W T_prev``; for unequal widths the paper's reading map
would not sum to 1 and is replaced. The reference's own plan is the identity.

The ground metric d is the Euclidean distance of activations, from the Gram matrix, of unit length first for "cosine";
squared on request. Plans are exact (network simplex) or entropic: Sinkhorn's iteration on logarithms, with the
regularisation relative to the mean cost, lowered step by step, and rounded to the exact masses (Altschuler et al.,
2017).

Reference: a parent of the target width, or the free-support barycentre: from a k-means grouping on, its neurons
become the means that the plans say, the plans are found anew, until the transport cost stops falling (Cuturi and
Doucet, 2014).
"""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from fxfuse.errors import MethodError
from fxfuse.passes.solvers.assignment import assign
from fxfuse.passes.solvers.groups import Points, check, masses, owners, solve_hard
from fxfuse.passes.solvers.hungarian import matched_labels
from fxfuse.passes.solvers.kmeans import lloyd
from fxfuse.passes.solvers.threads import one_thread
from fxfuse.types import Grouping, SpaceStatistics

MAX_ROUNDS = 20
MAX_ITERATIONS = 1000
ROUND = 50  # iterations on the plan between two on logarithms
FARTHEST = 100.0  # logarithm of a scaling up to which they go
TOLERANCE = 1e-6  # on the sum of all masses, before they are rounded to the exact ones


@one_thread()
def solve(
    stats: SpaceStatistics,
    target: int,
    *,
    weights: tuple[float, ...],
    generator: torch.Generator,  # noqa: ARG001  (deterministic; one signature for all solvers)
    reference: int | Literal["barycentre"] | None = None,
    metric: Literal["euclidean", "cosine"] = "euclidean",
    squared: bool = False,
    marginals: Literal["uniform", "importance"] = "uniform",
    regularisation: float | None = None,
) -> Grouping:
    """Transport every parent to the reference; any number of parents, any widths.

    ``reference`` is a parent's number (it must have the target width and a positive weight), "barycentre", or
    ``None`` for the first such parent and else the barycentre. ``regularisation`` is relative to the mean cost;
    ``None`` is exact.
    """
    check(stats, target, weights)
    check_space(stats.widths, target, weights, reference, metric, squared, marginals, regularisation)
    active = sum(width for width, weight in zip(stats.widths, weights, strict=True) if weight > 0)
    chosen = _reference(stats.widths, target, weights, reference)
    if chosen is None and active <= target:
        return solve_hard(stats, target, weights, _unreachable)
    task = _Transport(stats, target, weights, metric, squared, marginals, regularisation)
    plans = task.to_barycentre() if chosen is None else task.to_parent(chosen)
    merge = tuple(w * (plan / plan.sum(0)).T for w, plan in zip(weights, plans, strict=True))
    unmerge = tuple(plan / plan.sum(1, keepdim=True) for plan in plans)
    error = soft_error(task.gram, torch.cat(merge, 1), torch.cat(unmerge), masses(stats, weights))
    return Grouping(stats.space, merge, unmerge, error)


def _unreachable(points: Points, groups: int) -> Tensor:
    raise AssertionError(f"{len(points.mass)} neurons were to stay alone in {groups} groups")


def check_space(
    widths: tuple[int, ...],
    target: int,
    weights: tuple[float, ...],
    reference: int | str | None = None,
    metric: str = "euclidean",
    squared: bool = False,  # noqa: ARG001
    marginals: str = "uniform",
    regularisation: float | None = None,
) -> None:
    """Raise :class:`MethodError` for options that make no sense, or a reference that does not have the target width."""
    if metric not in ("euclidean", "cosine"):
        raise MethodError(f"metric of ot must be 'euclidean' or 'cosine'. Got {metric!r}")
    if marginals not in ("uniform", "importance"):
        raise MethodError(f"marginals of ot must be 'uniform' or 'importance'. Got {marginals!r}")
    if regularisation is not None and not regularisation > 0:
        raise MethodError(f"regularisation of ot must be positive, or None for exact plans. Got {regularisation}")
    _reference(widths, target, weights, reference)


def _reference(
    widths: tuple[int, ...], target: int, weights: tuple[float, ...], wanted: int | str | None
) -> int | None:
    """The reference parent, or ``None`` for the barycentre."""
    fit = [p for p, width in enumerate(widths) if width == target and weights[p] > 0]
    if wanted is None:
        return fit[0] if fit else None
    if wanted == "barycentre":
        return None
    if wanted not in fit:
        raise MethodError(
            f"reference of ot must be a parent of the target width {target} with a positive weight, parents counting "
            f"from 0. Got parent {wanted} (widths {list(widths)}, weights {[round(w, 3) for w in weights]}); "
            "leave the reference out or choose 'barycentre'"
        )
    return int(wanted)


@dataclass(frozen=True, slots=True)
class _Measure:
    """Points with masses: ``energy`` and ``mass``, each one per point, masses summing to 1."""

    energy: Tensor
    mass: Tensor


class _Transport:
    """The plans of all parents to one reference."""

    def __init__(
        self,
        stats: SpaceStatistics,
        target: int,
        weights: tuple[float, ...],
        metric: str,
        squared: bool,
        marginals: str,
        regularisation: float | None,
    ) -> None:
        self.gram = stats.gram
        self._ground = _unit(self.gram) if metric == "cosine" else self.gram
        self._squared, self._regularisation = squared, regularisation
        self._stats, self._target, self._weights, self._marginals = stats, target, weights, marginals
        self._blocks = [(owners(stats) == p).nonzero()[:, 0] for p in range(len(stats.widths))]
        # every parent needs masses, one without weight too: its neurons are read even if nothing is made of them
        share = masses(stats, (1.0,) * len(weights))
        energy = self._ground.diagonal()
        self._parents = [_Measure(energy[block], self._mass(share[block])) for block in self._blocks]

    def _mass(self, importance: Tensor) -> Tensor:
        if self._marginals == "uniform":
            importance = torch.ones_like(importance)
        return importance / importance.sum()

    def _plan(self, parent: int, other: _Measure, cross: Tensor) -> tuple[Tensor, float]:
        """Plan and cost from a parent to points whose inner products with its neurons are ``cross`` (``n_p x m``)."""
        source = self._parents[parent]
        cost = (source.energy[:, None] + other.energy[None, :] - 2 * cross).clamp(min=0)
        cost = cost if self._squared else cost.sqrt()
        if self._regularisation is None:
            plan = exact_plan(cost, source.mass, other.mass)
        else:
            plan = sinkhorn_plan(cost, source.mass, other.mass, self._regularisation)
        return plan, float((plan * cost).sum())

    def to_parent(self, reference: int) -> list[Tensor]:
        """Plans to a parent of the target width."""
        goal, columns = self._parents[reference], self._blocks[reference]
        return [
            torch.diag(goal.mass) if p == reference else self._plan(p, goal, self._ground[rows][:, columns])[0]
            for p, rows in enumerate(self._blocks)
        ]

    def to_barycentre(self) -> list[Tensor]:
        """Plans to the barycentre of the parents with weight."""
        means, mass = self._start()
        best: list[Tensor] = []
        least = float("inf")
        for _ in range(MAX_ROUNDS):
            cross = means @ self._ground
            goal = _Measure((cross * means).sum(1), mass)
            found = [self._plan(p, goal, cross[:, rows].T) for p, rows in enumerate(self._blocks)]
            cost = sum(w * value for w, (_, value) in zip(self._weights, found, strict=True))
            if not cost < least * (1 - 1e-9):
                break
            best, least = [plan for plan, _ in found], cost
            means = torch.cat([w * (plan / plan.sum(0)).T for w, plan in zip(self._weights, best, strict=True)], 1)
        return best

    def _start(self) -> tuple[Tensor, Tensor]:
        """Coefficients (``m x N``) and masses of the first support: group means of a k-means grouping."""
        share = torch.cat([w * parent.mass for w, parent in zip(self._weights, self._parents, strict=True)])
        active = share.nonzero()[:, 0]
        owner = owners(self._stats)[active]
        points = Points(self._ground[active][:, active], torch.zeros(len(active)), share[active], owner)
        labels = lloyd(points, matched_labels(points, self._target, sweeps=1), self._target)
        total = torch.zeros(self._target, dtype=torch.float64).index_add_(0, labels, points.mass)
        means = torch.zeros(self._target, len(share), dtype=torch.float64)
        means[labels, active] = points.mass / total[labels]
        return means, self._mass(total)


def _unit(gram: Tensor) -> Tensor:
    """The Gram matrix of the neurons scaled to unit length; silent neurons stay zero."""
    length = gram.diagonal().clamp(min=0).sqrt()
    inverse = torch.where(length > 0, 1 / torch.where(length > 0, length, 1.0), 0.0)
    return gram * inverse[:, None] * inverse[None, :]


def exact_plan(cost: Tensor, mu: Tensor, nu: Tensor) -> Tensor:
    """The cheapest plan (``n x m``) with row sums ``mu`` and column sums ``nu``, by the network simplex.

    Where all masses are equal a permutation is among the cheapest plans (Birkhoff), and the assignment finds it sooner.
    """
    if len(mu) == len(nu) and bool((mu == mu[0]).all()) and bool((nu == mu[0]).all()):
        plan = torch.zeros_like(cost)
        plan[torch.arange(len(mu)), assign(cost)] = mu
        return plan
    emd = _network_simplex()
    found, log = emd(mu.numpy(), nu.numpy(), np.ascontiguousarray(cost.numpy()), numItermax=100_000_000, log=True)
    if log["warning"] is not None:
        raise MethodError(f"the transport plan could not be found: {log['warning']}")
    return torch.from_numpy(np.asarray(found))


def _network_simplex() -> Any:
    """POT's ``emd``, imported at first use: it is slow to import, and its docstrings make Python warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ot
    return ot.emd


def sinkhorn_plan(cost: Tensor, mu: Tensor, nu: Tensor, regularisation: float) -> Tensor:
    """The entropic plan, with ``regularisation * mean(cost)`` as weight of the entropy; sums are exact, never NaN.

    The potentials are found for the largest cost as weight first, which is then halved down to the wanted one.
    """
    scale = float(cost.mean())
    if scale <= 0:
        return mu[:, None] * nu[None, :]
    goal = regularisation * scale
    log_mu, log_nu = mu.log(), nu.log()
    g = torch.zeros_like(nu)
    f = torch.zeros_like(mu)
    weight = max(goal, float(cost.max()))
    while True:
        last = weight <= goal
        left = MAX_ITERATIONS if last else 20
        while left > 0:
            f = weight * (log_mu - torch.logsumexp((g[None, :] - cost) / weight, 1))
            before = torch.logsumexp((f[:, None] - cost) / weight, 0)
            # how far the columns' sums are off, before they are set right
            off = float((before + g / weight).exp().sub(nu).abs().sum())
            g = weight * (log_nu - before)
            left -= 1
            if off < TOLERANCE:
                break
            f, g, done = _scaled(cost, f, g, mu, nu, weight, min(left, ROUND))
            left -= done
        if last:
            break
        weight = max(weight / 2, goal)
    return _rounded(((f[:, None] + g[None, :] - cost) / weight).exp(), mu, nu)


def _scaled(
    cost: Tensor, f: Tensor, g: Tensor, mu: Tensor, nu: Tensor, weight: float, most: int
) -> tuple[Tensor, Tensor, int]:
    """Up to ``most`` iterations on the plan itself, whose scaling vectors go back into the potentials: matrix-vector
    products instead of logarithms of sums. It stops before a scaling could overflow; how many were made."""
    kernel = ((f[:, None] + g[None, :] - cost) / weight).exp()
    u, v = torch.ones_like(mu), torch.ones_like(nu)
    done = 0
    while done < most:
        row = kernel @ v
        new_u = mu / row
        column = kernel.T @ new_u
        new_v = nu / column
        scale = torch.cat([new_u, new_v]).log().abs().max()
        if not float(scale) < FARTHEST:
            break
        u, v, done = new_u, new_v, done + 1
        if float((u * (kernel @ v) - mu).abs().sum()) < TOLERANCE / 2:
            break
    return f + weight * u.log(), g + weight * v.log(), done


def _rounded(plan: Tensor, mu: Tensor, nu: Tensor) -> Tensor:
    """A nearby plan whose sums are right: shrink what is too large, spread what is missing."""
    plan = plan * (mu / plan.sum(1).clamp(min=1e-300)).clamp(max=1)[:, None]
    plan = plan * (nu / plan.sum(0).clamp(min=1e-300)).clamp(max=1)[None, :]
    rows, columns = (mu - plan.sum(1)).clamp(min=0), (nu - plan.sum(0)).clamp(min=0)
    total = float(rows.sum())
    return plan + rows[:, None] * columns[None, :] / total if total > 0 else plan


def soft_error(gram: Tensor, merge: Tensor, unmerge: Tensor, importance: Tensor) -> float:
    """The grouping error where a neuron is read from several fused ones: ``a_i`` against row i of ``U M A``."""
    M, U = _operator(merge), _operator(unmerge)
    cross = np.asarray(M @ gram.numpy())  # m x N
    inner = np.asarray(M @ cross.T)  # m x m, symmetric
    read = unmerge.numpy()
    distance = gram.diagonal().numpy() - 2 * (read * cross.T).sum(1) + (read * np.asarray(U @ inner)).sum(1)
    importance = importance.clone()
    whole = float((importance * gram.diagonal()).sum())
    lost = float((importance * torch.from_numpy(distance).clamp(min=0)).sum())
    return lost / whole if whole > 0 else 0.0


def _operator(matrix: Tensor) -> Any:
    """The matrix, as a sparse one where that pays: plans between equal widths are permutations."""
    dense = matrix.numpy()
    return csr_array(dense) if np.count_nonzero(dense) < 0.05 * dense.size else dense
