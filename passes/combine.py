"""What several networks' answers become: their mean, or the answer of the one that is chosen for the sample.

Combiners are modules of plain tensor operators, which :mod:`fxfuse.passes.branches` writes into the graph. With ``z_p``
the answers and ``w_p`` the weights (which sum to 1):

    logits          sum_p w_p z_p
    probabilities   log sum_p w_p softmax(z_p)        the sum itself where answers are probabilities already
    choice          z_c of the parent c whose score on the sample is largest (:mod:`fxfuse.passes.routing`)

An output without classes is the weighted mean of the values.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxfuse.passes.label_ensemble import Completion


class MeanOutput(nn.Module):
    """``sum_p w_p z_p``."""

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        self.weights = tuple(weights)

    def forward(self, *values: Tensor) -> Tensor:
        """The weighted mean; what follows the first ``P`` values is not looked at."""
        total = values[0] * self.weights[0]
        for value, weight in zip(values[1:], self.weights[1:], strict=False):
            total = total + value * weight
        return total


class MeanProbabilities(nn.Module):
    """``log sum_p w_p softmax(z_p)`` along ``axis``."""

    def __init__(self, weights: Sequence[float], axis: int) -> None:
        super().__init__()
        self.weights = tuple(weights)
        self.axis = axis

    def forward(self, *values: Tensor) -> Tensor:
        """The logarithm of the mean of probabilities."""
        logs = [
            F.log_softmax(value, self.axis) + math.log(weight)
            for value, weight in zip(values, self.weights, strict=False)
            if weight > 0
        ]
        return torch.logsumexp(torch.stack(logs), 0)


class UnionProbabilities(nn.Module):
    """The ensemble of parents with different classes (:mod:`fxfuse.passes.label_ensemble`), as log-probabilities."""

    def __init__(self, completion: Completion, axis: int, normalised: bool) -> None:
        super().__init__()
        self.completion = completion
        self.axis = axis
        self.normalised = normalised

    def forward(self, *values: Tensor) -> Tensor:
        """``log q``, or ``q`` where the parents give probabilities."""
        moved = [value.movedim(self.axis, -1) for value in values[: self.completion.parents]]
        logs = [value.clamp_min(1e-30).log() if self.normalised else F.log_softmax(value, -1) for value in moved]
        q = self.completion.forward(*logs)
        return (q if self.normalised else q.clamp_min(1e-30).log()).movedim(-1, self.axis)


class UnionLogits(nn.Module):
    """Each class's mean logit over the parents that know it."""

    def __init__(self, completion: Completion, axis: int) -> None:
        super().__init__()
        self.completion = completion
        self.axis = axis

    def forward(self, *values: Tensor) -> Tensor:
        """Logits over the union."""
        moved = [value.movedim(self.axis, -1) for value in values[: self.completion.parents]]
        return self.completion.over_union(moved).movedim(-1, self.axis)
