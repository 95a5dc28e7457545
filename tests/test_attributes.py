"""Networks whose ``forward`` sets attributes are traced, and keep nothing of it."""

import pytest
import torch
from torch import fx, nn

from fxfuse.passes.attributes import attributes_restored
from fxfuse.passes.trace import trace


class Keeps(nn.Module):
    """Moves a constant and a buffer to where the input is, and keeps a table for the last shape that it has seen."""

    shape = None

    def __init__(self):
        super().__init__()
        self.mean = torch.tensor([0.1, 0.2, 0.3, 0.4])
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0, 4.0]))
        self.a = nn.Linear(4, 6)

    def forward(self, x):
        self.mean = self.mean.to(x.device)
        self.scale = self.scale.type_as(x)
        if self.shape != x.shape:
            self.table = torch.arange(x.shape[1], device=x.device).float()
            self.shape = x.shape
        return self.a((x - self.mean) * self.scale).sum(-1) + self.table


@pytest.mark.parametrize("front_end", ["fx", "export"])
def test_the_graph_computes_the_same(front_end):
    module = Keeps().eval()
    program = trace(module, torch.randn(2, 5, 4), front_end=front_end)
    assert program.front_end == front_end
    x = torch.randn(3, 5, 4)
    assert torch.allclose(program.module(x), module(x))
    assert set(program.module.state_dict()) == set(module.state_dict())


def test_all_is_as_it_was_afterwards():
    module = Keeps()
    mean, scale = module.mean, module.scale
    proxy = fx.Proxy(fx.Graph().placeholder("x"))
    with attributes_restored(module, lambda x: x is proxy):
        module.mean, module.scale, module.other = proxy, proxy, 1
        assert module.scale is proxy
        with pytest.raises(TypeError):
            module.scale = "no tensor"
    assert module.mean is mean
    assert module.scale is scale
    assert not hasattr(module, "other")
    assert set(module.state_dict()) == {"scale", "a.weight", "a.bias"}
