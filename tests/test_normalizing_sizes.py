"""Numbers that follow from a width are read from it, so that one graph serves all widths."""

import pytest
import torch
from normalized import targets, traced
from torch import nn

from fxfuse.models_zoo import ZOO, randomise
from fxfuse.passes.checking import difference, plain
from fxfuse.passes.graphs import assemble, attribute, copy_graph, has_attribute
from fxfuse.passes.normalizing.sizes import Follow, align, plan_reshape
from fxfuse.passes.trace import trace


def test_groups_of_a_reshape():
    assert align([(5, 3), (8, 8), (7, 7)], [(5, 3), (56, 56)]) == [([0], [0]), ([1, 2], [1])]
    assert align([(5, 3), (6, 6)], [(5, 3), (1, 1), (2, 2), (3, 3)]) == [([0], [0]), ([1], [2, 3])]
    assert align([(5, 3), (6, 6)], [(5, 3), (7, 7)]) is None


def test_plans_of_a_reshape():
    flat = plan_reshape([(5, 3), (512, 512), (7, 7), (7, 7)], [(5, 3), (25088, 25088)], [-1, 25088])
    assert flat == [Follow((0,)), Follow((1, 2, 3))]
    kept = plan_reshape([(5, 3), (24, 24)], [(5, 3), (6, 6), (4, 4)], ["b", -1, 4])
    assert kept == ["b", Follow((1,), 4), 4]
    assert plan_reshape([(5, 3), (6, 6), (8, 8)], [(5, 3), (4, 4), (12, 12)], ["b", 4, 12]) is None


LITERAL = {
    ("einsum", "fx"): "the scale of the scores is a number in the module",
    ("einsum", "export"): "the scale of the scores is a number in the module",
    ("resnet_pad", "fx"): "shortcuts pad a number of channels",
    ("resnet_pad", "export"): "shortcuts pad a number of channels",
    ("slices", "fx"): "slices have numbers as bounds",
    ("slices", "export"): "slices have numbers as bounds",
    ("in_place", "export"): "export turns half of the channels into a number",
    ("maxout", "export"): "export cannot say which part of a split is fixed",
    ("packed_qkv", "export"): "export turns the scale of the scores into a number",
    ("weight_arithmetic", "export"): "export turns the number of inputs into a number",
}
"""Where the code, or export, writes a number whose meaning is lost: the graph keeps it, as it must."""


EXPORTED = {"vit", "transformer_encoder", "mlp", "dense"}
WIDE = [
    pytest.param(n, w, f, marks=[pytest.mark.matrix] if f == "export" and n not in EXPORTED else [])
    for n, entry in sorted(ZOO.items())
    for w in entry.widths[1:2]
    for f in ("fx", "export")
    if (n, f) not in LITERAL
]


@pytest.mark.parametrize(("name", "width", "front_end"), WIDE)
def test_a_graph_traced_at_one_width_runs_at_another(name, width, front_end):
    """The graph of the model at its usual width, over the weights of the model at another, is that other model."""
    entry = ZOO[name]
    program = trace(randomise(entry.factory(), seed=1), entry.example(), front_end=front_end)
    other = randomise(entry.factory(width=width), seed=2).eval()
    twin = trace(other, entry.example(), front_end=front_end).module
    for node in program.module.graph.nodes:
        if node.op == "get_attr" and not has_attribute(twin, str(node.target)):
            twin.register_buffer(str(node.target), attribute(program.module, str(node.target)), persistent=False)
    moved = assemble(twin, copy_graph(program.module.graph))
    inputs = entry.example(4)
    with torch.no_grad():
        assert difference(plain(other(*inputs)), plain(moved(*inputs)))[0] < 1e-5


def test_equal_slices_and_splits_become_chunks():
    def forward(self, x):
        y = self.layer(x)
        a, b = y[:, :4], y[:, 4:8]
        c, d = torch.split(self.layer(x + 1), 4, dim=1)
        e, f = self.layer(x + 2).split(split_size=[4, 4], dim=-1)
        return a * b + c * d + e * f

    _, module = traced(forward, torch.randn(2, 4), state={"layer": nn.Linear(4, 8)})
    assert targets(module).count(torch.chunk) == 3
    assert torch.split not in targets(module)


def test_what_cannot_follow_is_said():
    def forward(self, x):
        a, b = torch.split(self.layer(x), [2, 6], dim=1)
        return a.sum(1) + b.sum(1)

    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 8)

    Module.forward = forward
    notes = trace(Module(), torch.randn(2, 4)).notes
    assert any("a split into [2, 6] keeps its sizes at test_normalizing_sizes.py:" in note for note in notes)


def test_heads_stay_and_their_width_follows():
    def forward(self, x):
        heads = self.layer(x).view(*x.shape[:-1], -1, 4).transpose(1, 2)
        return heads.sum(-1)

    _, module = traced(forward, torch.randn(2, 3, 4), state={"layer": nn.Linear(4, 8)})
    sizes = next(n.args[1] for n in module.graph.nodes if n.target is torch.reshape)
    assert sizes[2:] == (2, -1)
