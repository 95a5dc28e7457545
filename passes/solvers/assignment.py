"""Linear assignment, exactly, and quickly where it is large.

For any prices ``p`` of the columns, the costs ``c_ij + p_j`` with their row minima subtracted have the same optimal
assignments as ``c``. scipy's shortest augmenting paths (Crouse, 2016) are slow while nearly all reduced costs lie far
above zero, as they do for thousands of neurons; prices under which most rows have a nearly free column make its
searches short. An auction (Bertsekas, 1988) finds such prices: free rows bid for their best column by the margin over
their second best plus ``eps``, and ``eps`` is lowered from round to round. It may stop early and run in float32: only
the speed depends on the prices, never the result.
"""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

LARGE = 512
"""Rows from which on an auction pays for itself."""

LEFT_OVER = 0.02
"""Part of the rows that may stay free at the end of a phase: the last rows cost the most bids."""

MOST_BIDS = 40
"""Bids per row and phase after which the auction is given up: it ends far earlier unless many costs are alike, as those
of dead neurons are, and there plain searches are short."""

BLOCK = 128
"""Rows that bid at once: few enough for their offers to stay in the cache."""

STEPS = (0.25, 0.05, 0.01, 0.002)
"""The phases' ``eps``, as parts of the distance between a mean and a least cost."""


def assign(cost: Tensor) -> Tensor:
    """The column of every row under an assignment of least total cost, shape ``rows`` (int64).

    ``cost`` is ``rows x columns`` with ``rows <= columns``; ``inf`` forbids a pair. Raises ``ValueError`` where no
    assignment is feasible.
    """
    rows, columns = cost.shape
    if rows == columns >= LARGE and bool(cost.sum().isfinite()):  # no pair is forbidden
        cost = cost + prices(cost)
        cost -= cost.amin(1, keepdim=True)
    order, found = linear_sum_assignment(np.ascontiguousarray(cost.numpy()))
    return torch.from_numpy(found[order.argsort()])


def prices(cost: Tensor) -> Tensor:
    """Prices of the columns, by an auction over a square, finite ``cost`` (``n x n``); shape ``n``."""
    size = len(cost)
    values = (cost - cost.min()).to(torch.float32)
    scale = float(values.mean())
    price = values.new_zeros(size)
    if not scale > 0:
        return price.to(cost.dtype)
    for step in STEPS:
        owner = torch.full((size,), -1)
        free = torch.arange(size)
        bids = 0
        while len(free) > LEFT_OVER * size:
            if bids > MOST_BIDS * size:
                return torch.zeros_like(price).to(cost.dtype)
            bidders, waiting = free[:BLOCK], free[BLOCK:]
            bids += len(bidders)
            offer = values[bidders] + price
            best, wanted = offer.min(1)
            second = offer.scatter_(1, wanted[:, None], torch.inf).amin(1)
            bid = second - best + step * scale
            highest = torch.zeros(size).scatter_reduce_(0, wanted, bid, reduce="amax")
            winning = bid >= highest[wanted]
            winner = torch.full((size,), -1)
            winner[wanted[winning]] = bidders[winning]
            sold = (winner >= 0).nonzero()[:, 0]
            price[sold] += highest[sold]
            outbid = owner[sold]
            owner[sold] = winner[sold]
            losers = bidders[winner[wanted] != bidders]
            free = torch.cat([waiting, losers, outbid[outbid >= 0]])
    return price.to(cost.dtype)
