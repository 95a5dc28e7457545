"""No operator of a normalized graph writes into its inputs, and what they compute stays."""

import pytest
import torch
import torch.nn.functional as F
from normalized import BOTH, traced
from torch import nn

from fxfuse.passes.checking import difference, plain
from fxfuse.passes.normalizing.aliases import mutated
from fxfuse.passes.probing import probe


def relu_on_shared(self, x):
    y = self.layer(x)
    z = F.relu(y, inplace=True)
    return y + z


def add_to_alias(self, x):
    y = self.layer(x)
    z = y
    z += 1
    return y * 2


def write_slice(self, x):
    y = self.layer(x)
    y[:, 0] = 0.0
    y[:, 1:3] *= 2
    return y


def write_through_view(self, x):
    y = self.layer(x)
    rows = y.view(y.shape[0], 2, 3)
    part = rows[:, 1]
    part.mul_(3)
    rows.transpose(1, 2)[:, 0].add_(1)
    return y + part.sum()


def read_old_view_after(self, x):
    y = self.layer(x)
    tail = y[:, 3:]
    y.add_(1)
    head = y[:, :3]
    head.sub_(tail)
    return y, tail


def write_mask(self, x):
    y = self.layer(x)
    y[y < 0] = 0.5
    y[:, torch.tensor([0, 2])] = 7.0
    return y


def write_nested(self, x):
    y = self.layer(x).reshape(-1, 2, 3)
    y[..., 1] = x[:, :2]
    y[1:, 0, ::2] = 4
    return y


def fill_and_copy(self, x):
    y = self.layer(x)
    z = torch.zeros(x.shape[0], 6)
    z.copy_(y)
    y.fill_(2)
    y.clamp_(max=1.5)
    return z + y.zero_() + torch.sigmoid_(z)


def chain(self, x):
    y = self.layer(x)
    y.add_(1).mul_(2)
    w = y.t()
    w += 1
    return y


IN_PLACE = [
    relu_on_shared, add_to_alias, write_slice, write_through_view, read_old_view_after, write_mask, write_nested,
    fill_and_copy, chain,
]  # fmt: skip


@BOTH
@pytest.mark.parametrize("forward", IN_PLACE, ids=lambda f: f.__name__)
def test_no_operator_writes_in_place(forward, front_end):
    model, module = traced(forward, torch.randn(2, 4), front_end=front_end, state={"layer": nn.Linear(4, 6)})
    probe(module, (torch.randn(2, 4),))
    assert all(mutated(node) is None for node in module.graph.nodes)
    x = torch.randn(7, 4)
    with torch.no_grad():
        assert difference(plain(model(x)), plain(module(x)))[0] < 1e-6


def test_inputs_are_not_written():
    model, module = traced(lambda self, x: self.layer(x.add_(1)), torch.randn(2, 4), state={"layer": nn.Linear(4, 6)})
    x = torch.randn(3, 4)
    before = x.clone()
    y = module(x)
    assert torch.equal(x, before)
    assert torch.allclose(model(x.clone()), y)
