"""Heads of two tensors side by side: segments that are one variable hold one instance of what they own."""

import torch
from torch import nn

from fxfuse.models_zoo.randomise import randomise
from fxfuse.passes.axis_law import permutation_error
from fxfuse.pipeline import analyse


class TwoScales(nn.Module):
    """Queries, keys and values, and the same mixed head by head, as heads of one attention."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Conv2d(3, 24, 1, bias=False)
        self.mixed = nn.Conv2d(24, 24, 1, groups=6, bias=False)
        self.out = nn.Conv2d(16, 5, 1)

    def forward(self, x):
        batch, _, height, width = x.shape
        x = self.qkv(x)
        x = torch.cat([x, self.mixed(x)], 1).reshape(batch, -1, 12, height * width).transpose(-1, -2)
        q, k, v = x.chunk(3, -1)
        heads = q.relu() @ (k.relu().transpose(-1, -2) @ v)
        return self.out(heads.transpose(-1, -2).reshape(batch, -1, height, width))


def test_segments_that_are_one_variable_hold_one_instance():
    found = analyse(randomise(TwoScales()).eval(), torch.randn(2, 3, 3, 3))
    assert sorted(space.size for space in found.axes.spaces) == [2, 4]
    assert permutation_error(found.program, found.axes, seed=4) < 1e-12
