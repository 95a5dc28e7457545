"""``isinstance`` is stood in for, and comes back."""

import builtins

import pytest
import torch
from torch import Tensor, nn

from fxfuse.passes.kinds import traced_kinds


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
