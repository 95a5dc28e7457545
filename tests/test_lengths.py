"""``len`` of a traced tensor is a size that stays free."""

import builtins

import pytest
import torch
from torch import nn

from fxfuse.passes.lengths import traced_lengths
from fxfuse.passes.trace import trace


class Flat(nn.Module):
    """Takes the batch by ``len``."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 8)

    def forward(self, x):
        h = self.a(x)
        return h.reshape(len(h), -1)[:, : len(h[0])]


@pytest.mark.parametrize("front_end", ["fx", "export"])
def test_the_batch_stays_free(front_end):
    module = Flat()
    program = trace(module, torch.randn(2, 5, 6), front_end=front_end)
    for batch in (1, 3, 7):
        x = torch.randn(batch, 5, 6)
        assert torch.allclose(program.module(x), module(x))


def test_python_s_own_length_is_back_afterwards():
    before = builtins.len
    with traced_lengths(lambda x: 7 if x == "seven" else None):
        assert (len("seven"), len([1, 2])) == (7, 2)
    assert len("seven") == 5
    assert builtins.len is before
