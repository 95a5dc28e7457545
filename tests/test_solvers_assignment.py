"""Linear assignment: the same optimum as scipy's, whatever the auction's prices are."""

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from fxfuse.passes.solvers.assignment import LARGE, assign, prices


def value(cost: torch.Tensor, columns: torch.Tensor) -> float:
    assert len(set(columns.tolist())) == len(columns)
    return float(cost[torch.arange(len(columns)), columns].sum())


def least(cost: torch.Tensor) -> float:
    return float(cost.numpy()[linear_sum_assignment(cost.numpy())].sum())


def distances(size: int, features: int) -> torch.Tensor:
    x, y = torch.randn(2, size, features, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    return torch.cdist(x, y) ** 2


@pytest.mark.parametrize("size", [1, 5, LARGE - 1, LARGE, LARGE + 301])
@pytest.mark.parametrize("features", [2, 50])
def test_equals_scipy(size: int, features: int) -> None:
    cost = distances(size, features)
    assert value(cost, assign(cost)) == pytest.approx(least(cost), rel=1e-12)


@pytest.mark.parametrize(
    "cost",
    [
        torch.zeros(LARGE, LARGE).double(),
        (torch.arange(LARGE)[:, None] * torch.arange(LARGE)[None, :] % 7).double(),  # ties everywhere
        -distances(LARGE, 10),
        distances(LARGE, 10) * 1e-30,
        distances(LARGE, 10) + 1e9,  # differences that float32 cannot hold
        torch.where(torch.eye(LARGE) > 0, 1e12, 1.0).double(),
    ],
    ids=["constant", "ties", "negative", "tiny", "far from zero", "outliers"],
)
def test_costs_that_are_hard_for_an_auction(cost: torch.Tensor) -> None:
    assert value(cost, assign(cost)) == pytest.approx(least(cost), rel=1e-9)


def test_more_columns_than_rows_and_forbidden_pairs() -> None:
    cost = distances(40, 3)[:25]
    cost[:, 7] = torch.inf
    found = assign(cost)
    assert 7 not in found.tolist()
    assert value(cost, found) == pytest.approx(least(cost), rel=1e-12)


def test_infeasible() -> None:
    with pytest.raises(ValueError, match="infeasible"):
        assign(torch.full((3, 3), torch.inf).double())


def test_prices_leave_most_rows_with_a_column_of_their_own() -> None:
    """What makes them worth their time: nearly all rows reach zero reduced cost on nearly distinct columns."""
    cost = distances(LARGE, 20)
    before = len(cost.argmin(1).unique())
    after = len((cost + prices(cost)).argmin(1).unique())
    assert before < 0.6 * LARGE
    assert after > 0.75 * LARGE
