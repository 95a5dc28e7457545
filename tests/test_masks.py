"""Truths as indices: what the graph computes where the code says ``x[mask]``."""

import pytest
import torch
from torch import nn

from fxfuse.errors import TraceError
from fxfuse.passes.checking import difference
from fxfuse.passes.trace import trace

KEPT = (True, False, True, True, False, False, True, False)


class Masked(nn.Module):
    def __init__(self, body, width=8) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(width, 3)
        self.register_buffer("kept", torch.tensor(KEPT))
        self.body = body

    def forward(self, x):
        return self.out(self.body(self, self.a(x), self.b(x)))


def constant_columns(self, a, b):
    return torch.cat([a[:, self.kept], b[..., ~self.kept]], 1)


def constant_pairs(_, a, b):
    pairs = a[:, :4, None] * b[:, None, :4]
    return pairs[:, torch.ones(4, 4, dtype=torch.bool).tril(-1)].repeat(1, 2)[:, :8]


def constant_written(self, a, b):
    a = a.clone()
    a[:, self.kept] = b[:, ~self.kept].tanh()
    a[:, ~self.kept] = 0.25
    return a


def written_from_another(_, a, b):
    mask = a < b
    a[mask] = b[mask]
    return a


def written_from_arithmetic(_, a, b):
    a[a > 0.1] = 2 - a[a > 0.1] * 0.5
    a[b < 0] += 1.5
    mask = (a > b)[:, 0]
    a[mask] = -b[mask] + a[mask] * b[mask]
    return a


ALIKE = {
    "constant columns": constant_columns,
    "constant pairs": constant_pairs,
    "constant written": constant_written,
    "written from another": written_from_another,
    "written from arithmetic": written_from_arithmetic,
}


@pytest.mark.parametrize("name", ALIKE)
def test_the_graph_says_what_the_code_says(name):
    torch.manual_seed(0)
    net = Masked(ALIKE[name]).eval()
    program = trace(net, torch.randn(2, 5))
    assert program.front_end == "fx"
    x = torch.randn(7, 5)
    assert difference(net(x), program.module(x))[0] <= 1e-6


def written_between(_, a, b):
    mask = a < b
    taken = b[mask]
    b.mul_(2)
    a[mask] = taken
    return a


def counted(_, a, _b):
    return a * a[a > 0].mean()


@pytest.mark.parametrize("body", [written_between, counted])
def test_what_needs_the_selection_itself_is_refused_by_name(body):
    torch.manual_seed(0)
    with pytest.raises(TraceError, match=r"nonzero\.default gives depends on the data at test_masks\.py"):
        trace(Masked(body), torch.randn(2, 5))
