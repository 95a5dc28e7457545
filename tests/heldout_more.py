"""More networks in spellings that no rule was written for: what a second round of looking for trouble found.

Each stands for something that once failed: a graph that was not the network, neurons that were not seen, an operator
that was not followed.
"""

import math
import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

IMAGE, VECTOR, TOKENS = (3, 8, 8), (6,), (5, 6)


class BothWays(nn.Module):
    """Low-rank updates by ``A.T``, and a batch that is measured by ``len``."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.layer, self.head = nn.Linear(6, 8), nn.Linear(8, 9), nn.Linear(45, 4)
        self.a, self.b = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(9, 2))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.enter(x))
        h = self.layer(h) + 0.5 * (h @ self.a.T @ self.b.T)
        return self.head(h.view(len(x), -1))


class Gates(nn.Module):
    """Attention over channels and places by ``torch.max``, whose indices nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.place = nn.Conv2d(3, 8, 3), nn.Conv2d(2, 1, 3, padding=1)
        self.mlp = nn.Sequential(nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x * torch.sigmoid(self.mlp(x.flatten(2).topk(3, -1)[0].mean(-1)))[..., None, None]
        both = torch.cat([torch.max(x, 1)[0].unsqueeze(1), x.mean(1, keepdim=True)], 1)
        return self.head((x * torch.sigmoid(self.place(both))).flatten(2).sort(-1).values[..., -2])


class Cells(nn.Module):
    """Recurrent cells over states that are made in ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.LSTMCell(6, 8), nn.GRUCell(8, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        h, c = torch.zeros(x.size(0), 8), torch.zeros(x.size(0), 8).to(x)
        g = x.new_zeros(x.size(0), 7)
        for step in x.unbind(1):
            h, c = self.first(step, (h, c))
            g = self.second(h, g)
        return self.head(g)


class LastStates(nn.Module):
    """The last layer's two directions, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(6, 7, 2, batch_first=True, bidirectional=True), nn.Linear(14, 4)

    def forward(self, x: Tensor) -> Tensor:
        _, h = self.rnn(x)
        return self.head(torch.cat((h[-2, :, :], h[-1]), dim=1))


def hooked() -> nn.Module:
    """Weights that old hooks compute, and keep: a copy of the module has to leave the last result behind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, and in many networks
        with_norm = torch.nn.utils.weight_norm(nn.Linear(6, 8))
    pruned = prune.random_unstructured(nn.Linear(8, 7), "weight", 0.4)
    return nn.Sequential(with_norm, nn.ReLU(), pruned, nn.Tanh(), nn.Linear(7, 4))


class FunctionalAttention(nn.Module):
    """``F.multi_head_attention_forward`` on weights of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.out, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.weight, self.bias = nn.Parameter(torch.randn(24, 8)), nn.Parameter(torch.randn(24))

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x).transpose(0, 1)
        y, _ = F.multi_head_attention_forward(
            h, h, h, 8, 2, self.weight, self.bias, None, None, False, 0.0, self.out.weight, self.out.bias,
            training=self.training, need_weights=False,
        )  # fmt: skip
        return self.head(y.mean(0))


class Bags(nn.Module):
    """A bag of embeddings, one-hot counts that are scattered, and sums by index."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.counts = nn.EmbeddingBag(20, 8, mode="max"), nn.Linear(20, 8)
        self.table, self.head = nn.Parameter(torch.randn(20, 7)), nn.Linear(21, 4)
        self.mix = nn.Linear(8, 21)
        self.register_buffer("group", torch.tensor([0, 0, 1, 1, 2]))

    def forward(self, x: Tensor) -> Tensor:
        counts = torch.zeros(x.shape[0], 20, dtype=self.table.dtype).scatter_(1, x, 1.0)
        h = self.bag(x) + self.counts(counts)
        rows = torch.zeros(x.shape[0], 3, 7, dtype=h.dtype).index_add_(1, self.group, self.table[x])
        return self.head(torch.tanh(self.mix(torch.tanh(h))) * rows.flatten(1))


class Fourier(nn.Module):
    """Complex weights between two transforms, and the real part of complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(3, 6, 1), nn.Linear(8, 4)
        self.weight = nn.Parameter(torch.randn(6, 8, 4, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x).float()
        modes = torch.fft.rfft(h)
        out = torch.zeros(len(h), 8, h.size(-1) // 2 + 1, dtype=modes.dtype)
        out[:, :, :4] = torch.einsum("bix,iox->box", modes[:, :, :4], self.weight)
        h = torch.fft.irfft(out, n=h.size(-1)).flip(-1)
        return self.head(F.relu(h + torch.fft.fft(h, dim=-1).real / math.sqrt(h.size(-1))).mean(-1))


@dataclass
class Answer:
    """What ``Record`` returns."""

    logits: Tensor
    hidden: Tensor | None = None


class Record(nn.Module):
    """A record of one's own as the output, and a bilinear form written as an inner product with a square."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.square, self.head = nn.Linear(6, 8), nn.Parameter(torch.randn(8, 8)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Answer:
        return Answer(logits=self.head(torch.tanh(torch.inner(torch.relu(self.a(x)), self.square))))


class Triples(nn.Module):
    """Queries, keys and values packed innermost: (heads, width, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.qkv, self.out, self.head = (
            nn.Linear(6, 6), nn.Linear(6, 18), nn.Linear(6, 6), nn.Linear(6, 4),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 2, 3, 3).unbind(-1)
        weights = torch.einsum("bnhd,bmhd->bhnm", q, k).softmax(-1)
        return self.head((x + self.out(torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2))).mean(1))


class Keywords(nn.Module):
    """Modules and parameters under names that Python keeps for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.path = nn.ModuleDict({"in": nn.Linear(6, 8), "global": nn.ModuleDict({"out": nn.Linear(8, 4)})})
        self.scale = nn.ParameterDict({"lambda": nn.Parameter(torch.ones(8))})

    def forward(self, x: Tensor) -> Tensor:
        return self.path["global"]["out"](torch.tanh(self.path["in"](x)) * self.scale["lambda"])


MORE = {
    "transposed parameters": (BothWays, TOKENS),
    "extremes": (Gates, IMAGE),
    "cells and states": (Cells, TOKENS),
    "final states": (LastStates, TOKENS),
    "old hooks": (hooked, VECTOR),
    "functional attention": (FunctionalAttention, TOKENS),
    "bags and sums": (Bags, None),
    "complex weights": (Fourier, (3, 10)),
    "record": (Record, VECTOR),
    "packed innermost": (Triples, TOKENS),
    "keywords": (Keywords, VECTOR),
}
