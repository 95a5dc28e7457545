"""Parents of one architecture match whatever their names and widths; others are told apart in one sentence."""

import re

import pytest
import torch
import torch.nn.functional as F
from laws import analysed, distance, grouped, outputs, statistics
from torch import nn

from fxfuse.data import samples_from
from fxfuse.errors import MismatchError
from fxfuse.models_zoo.randomise import randomise
from fxfuse.passes.correspond import correspond
from fxfuse.pipeline import analyse
from fxfuse.types import Leaf

IMAGE = torch.randn(2, 3, 8, 8)


class Net(nn.Module):
    """A small residual network with a few choices."""

    def __init__(self, width=6, classes=5, kernel=3, extra=False, bias=True, stride=1, act=F.relu, dim=1, scale=2.0):
        super().__init__()
        self.stem = nn.Conv2d(3, width, kernel, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(width)
        self.weight = nn.Parameter(torch.zeros(width, width, 3, 3))
        self.extra = nn.Conv2d(width, width, 1) if extra else None
        self.head = nn.Linear(width, classes, bias=bias)
        self.stride, self.act, self.dim, self.scale = stride, act, dim, scale

    def forward(self, x):
        x = self.act(self.norm(self.stem(x)))
        x = F.conv2d(x, self.weight, stride=self.stride, padding=1) * self.scale
        if self.extra is not None:
            x = self.extra(x)
        return self.head(x.mean((2, 3))).softmax(self.dim)


class Renamed(nn.Module):
    """The same network as ``Net()``, written by somebody else."""

    def __init__(self, width=6):
        super().__init__()
        self.output = nn.Linear(width, 5)
        self.kernel = nn.Parameter(torch.zeros(width, width, 3, 3))
        self.features = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, image):
        h = F.conv2d(self.features(image), self.kernel, stride=1, padding=1) * 2.0
        return F.softmax(self.output(torch.mean(h, dim=(2, 3))), dim=1)


def net(name="net", seed=0, cls=Net, **options):
    return analyse(randomise(cls(**options), seed), IMAGE, name=name)


# -------------------------------------------------------------------------------------------- matches


def test_other_names_and_widths_correspond():
    reference, other = net("ours"), net("theirs", 1, Renamed, width=4)
    pairs = correspond(reference, [other])
    assert pairs.names[0] == {
        "stem.weight": "features.0.weight",
        "stem.bias": "features.0.bias",
        **{f"norm.{key}": f"features.1.{key}" for key in reference.program.module.get_submodule("norm").state_dict()},
        "weight": "kernel",
        "head.weight": "output.weight",
        "head.bias": "output.bias",
    }
    (parent,) = pairs.parents
    mine = {n.name for n in reference.program.module.graph.nodes}
    assert mine <= {n.name for n in parent.program.module.graph.nodes}
    assert parent.partition == reference.partition
    assert [s.size for s in parent.axes.spaces] == [4 for _ in reference.axes.spaces]
    assert parent.axes.state["features.0.weight"].dims[0] == Leaf(4, reference.axes.state["stem.weight"].dims[0].space)
    assert pairs.widths(0) == (4,)
    # the renamed graph still computes what the parent computes, and the parent itself is left alone
    assert distance(outputs(parent.program.module, (IMAGE,)), outputs(other.program.module, (IMAGE,))) == 0
    assert "image" in {n.name for n in other.program.module.graph.nodes}


def test_a_network_written_twice_fuses_into_itself():
    first, second = net(), net("renamed", 0, Renamed)
    pairs = correspond(first, [first, second])
    state = first.program.module.state_dict()
    second.program.module.load_state_dict({pairs.names[1][key]: value for key, value in state.items()})
    pairs = correspond(first, [first, second])
    fused = grouped(pairs, statistics(pairs, data_of(IMAGE)), "hungarian")
    assert distance(outputs(fused, (IMAGE,)), outputs(first.program.module, (IMAGE,))) < 1e-5


def data_of(x):
    return samples_from(x.repeat(8, 1, 1, 1) + 0.5 * torch.randn(16, 3, 8, 8))


class Branches(nn.Module):
    """Two branches; ``swapped`` runs the second one first, and calls the modules otherwise."""

    def __init__(self, swapped=False):
        super().__init__()
        self.swapped = swapped
        self.a, self.b = nn.Linear(4, 5), nn.Linear(4, 6)

    def forward(self, x):
        if self.swapped:
            second = torch.tanh(self.b(x))
            first = torch.relu(self.a(x))
        else:
            first = torch.relu(self.a(x))
            second = torch.tanh(self.b(x))
        return torch.cat([first, second], 1)


def test_the_order_of_branches_does_not_matter():
    first, second = (analyse(randomise(Branches(s)), torch.randn(2, 4)) for s in (False, True))
    pairs = correspond(first, [second])
    assert pairs.names[0] == {key: key for key in first.program.module.state_dict()}
    values = pairs.parents[0].axes.values
    assert values["a"] == first.axes.values["a"]


class Heads(nn.Module):
    """Attention with the scale and the head width written as numbers."""

    def __init__(self, width=4, heads=2):
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 3 * heads * width), nn.Linear(heads * width, 6)
        self.heads, self.width, self.scale = heads, width, width**-0.5

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.width).permute(2, 0, 3, 1, 4).unbind(0)
        y = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(b, n, self.heads * self.width))


def test_numbers_that_are_widths_may_differ():
    x = torch.randn(2, 3, 6)
    parents = [analyse(randomise(Heads(*size)), x, name=str(size)) for size in ((4, 2), (8, 2), (4, 3))]
    pairs = correspond(parents[0], parents)
    by_name = {space.name: pairs.widths(space.id) for space in parents[0].axes.spaces}
    assert set(by_name.values()) == {(2, 2, 3), (4, 8, 4)}


def test_a_single_neuron_is_a_neuron():
    reference, single = analysed("resnet_pad"), analysed("resnet_pad", 2)
    for a, b in ((reference, single), (single, reference)):
        pairs = correspond(a, [a, b])
        assert len(pairs.reference.axes.spaces) == len(reference.axes.spaces)
        assert any(1 in pairs.widths(s.id) for s in pairs.reference.axes.spaces)
        assert len(pairs.reference.partition.levels) == len(a.partition.levels)


# ----------------------------------------------------------------------------------------- mismatches

DIFFERENT = {
    "classes": (
        {"classes": 7},
        "at head (level head) where b has Linear(.*) at head (level head): out_features is 5 and 7",
    ),
    "kernel": ({"kernel": 5}, "a has Conv2d(3, 6, kernel_size=(3, 3), .* at stem (level stem) where b has Conv2d"),
    "bias": ({"bias": False}, "a has Linear(.*) at head (level head) where b has Linear(.* other names"),
    "stride": (
        {"stride": 2},
        "conv2d at conv2d (level .*) where b has conv2d at conv2d (level .*): the arguments 1 and 2",
    ),
    "activation": ({"act": torch.tanh}, "a has relu at relu (level stem) where b has tanh at tanh (level stem)"),
    "dim": (
        {"dim": 0},
        "a has softmax at softmax (level head) where b has softmax at softmax (level head): .* 1 and 0",
    ),
    "constant": (
        {"scale": 3.0},
        "a has mul at mul (level .*) where b has mul at mul (level .*): the arguments 2.0 and 3.0",
    ),
    "extra": (
        {"extra": True},
        "a has mean at mean (level head) where b has Conv2d(.*) at extra (level extra): the operators",
    ),
}


@pytest.mark.parametrize(("options", "message"), DIFFERENT.values(), ids=DIFFERENT)
def test_a_mismatch_is_one_sentence_that_names_the_levels(options, message):
    with pytest.raises(MismatchError) as caught:
        correspond(net("a"), [net("a"), net("b", **options)])
    said = str(caught.value)
    pattern = ".*".join(map(re.escape, message.split(".*")))
    assert said.startswith("the graphs of a and b differ")
    assert re.search(pattern, said), said
    assert "\n" not in said


def test_stride_like_widths_are_no_widths():
    """The stride is 2 where the reference's is 1, though some width is 2 where the reference's is not."""
    with pytest.raises(MismatchError, match="the arguments 1 and 2 differ"):
        correspond(net("a", width=6), [net("b", width=2, stride=2)])


def test_more_inputs():
    class Two(Net):
        def forward(self, x, y):
            return super().forward(x + y)

    other = analyse(randomise(Two()), (IMAGE, IMAGE), name="b")
    with pytest.raises(MismatchError, match="the graphs of a and b differ"):
        correspond(net("a"), [other])


class Tied(nn.Module):
    def __init__(self, tied):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(5, 4), nn.Linear(4, 5)
        self.middle = nn.Linear(4, 4)
        if tied:
            self.middle.weight = nn.Parameter(torch.zeros(4, 4))
            self.forward = self.coupled

    def coupled(self, x):
        h = torch.relu(self.encoder(x))
        return self.decoder(h + torch.relu(self.middle(h)))

    def forward(self, x):
        h = torch.relu(self.encoder(x))
        return self.decoder(torch.relu(self.middle(h)))


def test_other_connections():
    a, b = (analyse(randomise(Tied(t)), torch.randn(2, 5), name=n) for t, n in ((False, "a"), (True, "b")))
    with pytest.raises(MismatchError, match=r"a has Linear.* at decoder \(level decoder\) where b has "):
        correspond(a, [b])


class Spare(nn.Module):
    """``names`` are unused auxiliary heads."""

    def __init__(self, *names):
        super().__init__()
        self.head = nn.Linear(4, 3)
        for name in names:
            self.add_module(name, nn.Linear(4, 2))

    def forward(self, x):
        return self.head(x)


def test_what_the_graph_does_not_use_corresponds_by_name_or_stays():
    first, second = (analyse(randomise(Spare(*n), 1), torch.randn(2, 4)) for n in (("aux", "own"), ("aux",)))
    pairs = correspond(first, [second])
    assert pairs.names[0].keys() == {"head.weight", "head.bias", "aux.weight", "aux.bias"}
    fused = grouped(pairs, {}, "average").state_dict()
    assert torch.equal(fused["own.weight"], first.program.module.state_dict()["own.weight"])
    assert torch.equal(fused["aux.weight"], second.program.module.state_dict()["aux.weight"])


def test_a_zoo_model_does_not_match_another():
    with pytest.raises(MismatchError, match="differ"):
        correspond(analysed("mlp"), [analysed("gated_mlp")])
