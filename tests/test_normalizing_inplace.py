"""No operator of a normalized graph writes into its inputs, and what they compute stays."""

import pytest
import torch
import torch.nn.functional as F
from normalized import BOTH, traced
from torch import nn

from fxfuse.errors import TraceError
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


def write_owned_pieces(self, x):
    y = self.layer(x)
    values, order = y.sort(-1)
    values.mul_(2)
    most = torch.topk(y, 3)
    most.values.mul_(2)
    most[0].add_(1)
    return values + order, most.values + most.indices, y


def write_split_pieces(self, x):
    y = self.layer(x)
    first, second, third = torch.split(y, [1, 2, 3], -1)
    second.zero_()
    third[:, 0] = 7
    return y.cos(), torch.cat([third, second, first], -1)


def write_tuple_as_a_whole(self, x):
    y = self.layer(x)
    parts = y.split(2, -1)
    for i, part in enumerate(parts[1:]):
        part.add_(i + 1.0)
    parts[-1].relu_()
    head = parts[0]
    y.mul_(3)
    return torch.cat(parts, -1) + head.sum(-1, keepdim=True)


def write_unbound(self, x):
    y = self.layer(x).view(-1, 2, 3)
    one, other = y.unbind(1)
    one += other
    other[:, 1].mul_(2)
    (whole,) = y.chunk(1, -1)
    whole.sub_(1)
    return y.flatten(1) + torch.cat([one, other], 1)


def write_states(self, x):
    outputs, (hidden, cell) = self.recurrent(x[:, None])
    hidden[0].mul_(2)
    cell.add_(1)
    return outputs[:, 0] + hidden[-1] + cell[0]


def write_diagonal(self, x):
    y = self.layer(x)
    square = y.unsqueeze(2) * y.unsqueeze(1)
    square.diagonal(0, 1, 2).add_(1.5)
    above = torch.diagonal(square, offset=1, dim1=-2, dim2=-1)
    above.copy_(y[:, 1:])
    return square.sum(1), above.relu_()


def write_out(self, x):
    y = self.layer(x)
    z = torch.empty_like(y)
    torch.mul(y, y.sigmoid(), out=z)
    z += 1
    torch.tanh(y, out=y)
    return y, z


def write_what_is_marked(self, x):
    y = self.layer(x)
    z = y.requires_grad_(False)
    z += 1
    return y * 2 + z[:, :1].requires_grad_(False)


def write_what_dropout_gives(self, x):
    y = self.layer(x)
    z = F.relu(self.dropout(y), inplace=True)
    z[:] += 1
    F.leaky_relu(self.nothing(F.dropout(y, 0.1, training=False)), 0.1, inplace=True)
    return y * 2 + z


IN_PLACE = [
    write_what_dropout_gives, write_diagonal, write_out, write_what_is_marked,
    relu_on_shared, add_to_alias, write_slice, write_through_view, read_old_view_after, write_mask, write_nested,
    fill_and_copy, chain, write_owned_pieces, write_split_pieces, write_tuple_as_a_whole, write_unbound, write_states,
]  # fmt: skip


def layers():
    rest = {"dropout": nn.Dropout(0.5), "nothing": nn.Identity()}
    return {"layer": nn.Linear(4, 6), "recurrent": nn.LSTM(4, 6, batch_first=True), **rest}


@BOTH
@pytest.mark.parametrize("forward", IN_PLACE, ids=lambda f: f.__name__)
def test_no_operator_writes_in_place(forward, front_end):
    model, module = traced(forward, torch.randn(2, 4), front_end=front_end, state=layers())
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


def test_a_written_piece_whose_place_is_not_known_is_named():
    def forward(self, x):
        y = self.layer(x)
        y.unbind(0)[-1].mul_(2)
        return y

    with pytest.raises(TraceError, match=r"a piece made by unbind at .* is written in place"):
        traced(forward, torch.randn(2, 4), front_end="fx", state=layers())


@BOTH
def test_several_results_written_to_given_tensors_are_named(front_end):
    def forward(self, x):
        y = self.layer(x)
        most, where = torch.empty(x.shape[0]), torch.empty(x.shape[0], dtype=torch.int64)
        torch.max(y, 1, out=(most, where))
        return most

    with pytest.raises(TraceError, match=r"no functional form for the in-place operator"):
        traced(forward, torch.randn(2, 4), front_end=front_end, state=layers())
