"""A copy of a network computes with its own layers, also where functions hold them."""

import functools

import pytest
import torch
from torch import nn

from fxfuse.passes.graphs import copied
from fxfuse.passes.trace import trace
from fxfuse.pipeline import analyse


def scaled(layer, x, *, factor):
    return factor * layer(x)


class Held(nn.Module):
    """Keeps functions that hold its layers: in a closure, in a default, in a list, in a partial application."""

    def __init__(self):
        super().__init__()
        self.mlp = nn.ModuleDict({"a": nn.Linear(6, 8), "b": nn.Linear(8, 8)})
        m = self.mlp
        self.first = lambda x: m["b"](m["a"](x).relu())
        self.second = nn.Linear(8, 7)
        self.steps = [lambda x, layer=self.second: layer(x)]
        self.third = nn.Linear(7, 5)
        self.last = functools.partial(scaled, self.third, factor=2.0)
        self.plain = lambda x: x + 1

    def forward(self, x):
        for step in [self.first, *self.steps]:
            x = torch.relu(step(x))
        return self.plain(self.last(x))


def test_a_copy_does_not_read_the_original():
    module = Held().eval()
    twin, x = copied(module), torch.randn(3, 6)
    want = module(x)
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    assert torch.equal(twin(x), want)
    assert not torch.equal(module(x), want)
    assert twin.steps is not module.steps


def test_parameters_may_be_shared():
    module = Held()
    twin = copied(module, share=True)
    assert all(a is b for a, b in zip(module.parameters(), twin.parameters(), strict=True))
    assert twin.first.__closure__[0].cell_contents is twin.mlp


@pytest.mark.parametrize("front_end", ["fx", "export"])
def test_the_graph_reads_the_parameters(front_end):
    program = trace(Held(), torch.randn(2, 6), front_end=front_end)
    reads = {str(node.target) for node in program.module.graph.nodes if node.op == "call_module"}
    assert reads == {"mlp.a", "mlp.b", "second", "third"}


def test_their_neurons_are_spaces():
    found = analyse(Held(), torch.randn(2, 6)).axes
    assert sorted(space.size for space in found.spaces) == [7, 8, 8]
