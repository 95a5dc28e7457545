"""``isinstance`` is stood in for, and comes back."""

import builtins

import pytest
import torch
from einops import rearrange, reduce, repeat
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from fxfuse.passes.axis_law import permutation_error
from fxfuse.passes.kinds import traced_kinds
from fxfuse.pipeline import analyse


def test_what_passes_for_a_tensor_is_one_and_nothing_else():
    before = builtins.isinstance
    with traced_kinds(lambda x: x == "tensor"):
        assert isinstance("tensor", Tensor)
        assert isinstance("tensor", (int, Tensor))
        assert isinstance("tensor", Tensor | None)
        assert torch.is_tensor("tensor")
        assert not isinstance("tensor", int | list)
        assert not isinstance("tensor", nn.Parameter)
        assert not isinstance("other", Tensor)
        assert isinstance(torch.ones(1), Tensor)
    assert builtins.isinstance is before


def test_it_comes_back_after_an_error():
    before = builtins.isinstance
    with pytest.raises(ValueError, match="stop"), traced_kinds(lambda _: False):
        raise ValueError("stop")
    assert builtins.isinstance is before


class Patches(nn.Module):
    """Attention over the patches of an image, spelt with einops throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Sequential(Rearrange("b c (h p) (w q) -> b (h w) (p q c)", p=4, q=4), nn.Linear(48, 12))
        self.token, self.qkv, self.out = nn.Parameter(torch.randn(1, 1, 12)), nn.Linear(12, 36), nn.Linear(12, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        x = torch.cat([repeat(self.token, "1 1 d -> b 1 d", b=x.shape[0]), x], 1)
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=3)
        x = x + self.out(rearrange((q @ k.mT).softmax(-1) @ v, "b h n d -> b n (h d)"))
        return self.head(reduce(x, "b n d -> b d", "mean"))


def test_networks_in_einops_are_followed():
    found = analyse(Patches().eval(), (torch.randn(2, 3, 8, 8),))
    assert found.program.front_end == "fx"
    assert not found.axes.opaque
    assert len(found.axes.spaces) == 4  # the stream, heads, and what lies in a head: query with key, and value
    assert permutation_error(found.program, found.axes) < 1e-12
