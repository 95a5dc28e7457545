"""Levels: names, granularities, sharing, several outputs and tensors, linear time."""

import itertools
import time

import pytest
import torch
from laws import NO_AXES, analysed, model
from torch import fx, nn

from fxfuse.errors import GraphError
from fxfuse.models_zoo.randomise import randomise
from fxfuse.passes.partition import partition
from fxfuse.passes.trace import trace
from fxfuse.pipeline import analyse
from fxfuse.types import Program


def levels(module, *example, granularity="block", front_end="fx"):
    program = trace(randomise(module).eval(), example, front_end=front_end)
    return partition(program, NO_AXES, granularity)


# --------------------------------------------------------------------------------------- block classes


class Inverted(nn.Sequential):
    def __init__(self, cin, cout):
        super().__init__(
            nn.Conv2d(cin, 2 * cin, 1), nn.ReLU6(), nn.Conv2d(2 * cin, cout, 3, padding=1), nn.BatchNorm2d(cout)
        )
        self.residual = cin == cout

    def forward(self, x):
        y = super().forward(x)
        return x + y if self.residual else y


class Mobile(nn.Module):
    def __init__(self, *widths):
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3)
        self.blocks = nn.Sequential(*[Inverted(a, b) for a, b in itertools.pairwise(widths)])
        self.head = nn.Linear(widths[-1], 5)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


@pytest.mark.parametrize("front_end", ["fx", "export"])
def test_instances_of_a_block_class_are_one_level(front_end):
    found = levels(Mobile(4, 4, 6, 6, 8), torch.randn(2, 3, 8, 8), front_end=front_end)
    assert [level.name for level in found.levels] == ["stem", *(f"blocks.{i}" for i in range(4)), "head"]


def names_of(found):
    return [level.name for level in found.levels]


def test_a_class_that_occurs_once_is_a_block_only_if_it_is_one_level():
    assert names_of(levels(Mobile(4, 6), torch.randn(2, 3, 8, 8))) == ["stem", "blocks.0.0", "blocks.0.2", "head"]


def test_a_class_of_chains_that_occurs_again_is_a_block():
    found = levels(Mobile(4, 6, 8), torch.randn(2, 3, 8, 8))
    assert names_of(found) == ["stem", "blocks.0", "blocks.1", "head"]


class Pair(nn.Module):
    """Two convolutions, as in a U-Net."""

    def __init__(self, cin, cout):
        super().__init__()
        self.first, self.second = nn.Conv2d(cin, cout, 3, padding=1), nn.Conv2d(cout, cout, 3, padding=1)

    def forward(self, x):
        return torch.relu(self.second(torch.relu(self.first(x))))


class Stage(nn.Module):
    """A class that occurs again, too, but holds blocks."""

    def __init__(self, cin, cout):
        super().__init__()
        self.one, self.two = Pair(cin, cout), Pair(cout, cout)

    def forward(self, x):
        return torch.max_pool2d(self.two(self.one(x)), 2)


class Skipping(nn.Module):
    """A small U-Net of stages."""

    def __init__(self):
        super().__init__()
        self.down, self.bottom, self.up = Stage(3, 4), Stage(4, 6), Pair(9, 4)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        y = nn.functional.interpolate(self.bottom(self.down(x)), scale_factor=4.0)
        return self.head(self.up(torch.cat([x, y], 1)))


@pytest.mark.parametrize("front_end", ["fx", "export"])
def test_the_innermost_class_of_chains_is_the_block(front_end):
    found = levels(Skipping(), torch.randn(2, 3, 16, 16), front_end=front_end)
    assert names_of(found) == ["down.one", "down.two", "bottom.one", "bottom.two", "up", "head"]


class Deep(nn.Sequential):
    def __init__(self):
        super().__init__(*[layer for _ in range(7) for layer in (nn.Linear(4, 4), nn.ReLU())])


def test_chains_that_are_too_long_are_no_blocks():
    assert len(levels(nn.Sequential(Deep(), Deep()), torch.randn(2, 4)).levels) == 14


# ----------------------------------------------------------------------------------- what all layers read


class Masked(nn.Module):
    """An encoder whose layers all read one mask, made from an input, and one table of positions."""

    def __init__(self):
        super().__init__()
        self.embed, self.kinds = nn.Embedding(9, 8), nn.Embedding(2, 8)
        self.table = nn.Parameter(torch.randn(1, 5, 5))
        self.layers = nn.ModuleList(nn.ModuleDict({k: nn.Linear(8, 8) for k in "qkvo"}) for _ in range(3))
        self.head = nn.Linear(8, 2)

    def forward(self, ids, mask, kinds):
        bias = self.table + (1.0 - mask[:, None].float()) * -100.0
        x = self.embed(ids) + self.kinds(kinds)
        for layer in self.layers:
            scores = layer["q"](x) @ layer["k"](x).transpose(1, 2) + bias
            x = x + layer["o"](scores.softmax(-1) @ layer["v"](x))
        return self.head(x.mean(1))


@pytest.mark.parametrize("front_end", ["fx", "export"])
def test_a_mask_that_all_layers_read_does_not_tie_them_together(front_end):
    example = (torch.randint(9, (2, 5)), torch.ones(2, 5), torch.randint(2, (2, 5)))
    found = levels(Masked(), *example, front_end=front_end).levels
    sizes = [len(level.parameters) for level in found if "table" not in level.parameters]
    assert sizes == [2, 8, 8, 8, 2]  # both embeddings, three layers, the head
    assert len(found) == 6
    assert {"mask"} <= {name for level in found for name in level.inputs}


class Towers(nn.Module):
    """Two inputs, each with layers of its own before they meet."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, a, b):
        return self.head(torch.relu(self.left(a)) + torch.relu(self.right(b)))


class Inline(nn.Module):
    """A part whose input is a residual stream."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        x = x + self.layers[1](torch.relu(self.layers[0](x)))
        return x + self.layers[3](torch.relu(self.layers[2](x)))


def test_a_residual_connection_from_the_input_is_one():
    assert [len(level.parameters) for level in levels(Inline(), torch.randn(2, 4)).levels] == [4, 4]


def test_an_input_that_is_still_to_be_read_keeps_levels_together():
    found = levels(Towers(), torch.randn(2, 4), torch.randn(2, 3)).levels
    assert [level.parameters for level in found] == [
        ("left.weight", "left.bias", "right.weight", "right.bias"),
        ("head.weight", "head.bias"),
    ]


class Tapped(Mobile):
    """Reads the inside of a block from outside: that block cannot be one level."""

    def forward(self, x):
        x = self.blocks[0](self.stem(x))
        inside = self.blocks[1][1](self.blocks[1][0](x))
        x = self.blocks[1][3](self.blocks[1][2](inside))
        return self.head(x.mean((2, 3))), inside.mean((2, 3))


def test_a_block_that_is_read_inside_stays_apart():
    found = levels(Tapped(4, 4, 6), torch.randn(2, 3, 8, 8))
    assert len([level for level in found.levels if level.name.startswith("blocks.1")]) == 2


# ---------------------------------------------------------------------------------------- granularities


def test_layers():
    found = levels(Mobile(4, 4, 6), torch.randn(2, 3, 8, 8), granularity="layer").levels
    assert [level.operators[0] for level in found if "onv" in level.operators[0]]
    assert len(found) == 6
    assert all(sum(op.startswith(("Conv", "Linear")) for op in level.operators) == 1 for level in found)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["resnet20", "vgg11_bn", "vit"])
def test_a_number_of_levels(name, count):
    found = analysed(name)
    assert len(partition(found.program, found.axes, count).levels) == count


def test_more_levels_than_there_are():
    found = analysed("mlp")
    assert len(partition(found.program, found.axes, 100).levels) == 3


def test_names_are_the_boundaries():
    found = analysed("vgg11_bn")
    chosen = (found.partition.levels[2].boundary, found.partition.levels[5].boundary)
    cut = partition(found.program, found.axes, chosen)
    output = found.partition.levels[-1].boundary
    assert [level.boundary for level in cut.levels] == [*chosen, output]
    path = next(str(n.target) for n in found.program.module.graph.nodes if n.name == "features_4")
    assert partition(found.program, found.axes, (path,)).levels[0].boundary == "features_4"


def test_names_of_levels_are_names_too():
    found = analysed("resnet20")
    block = found.partition.levels[3]
    assert block.name not in {n.name for n in found.program.module.graph.nodes}
    for names in ((block.name,), [block.name]):
        assert partition(found.program, found.axes, names).levels[0].boundary == block.boundary


def test_an_unknown_name_is_an_error_with_the_nearest():
    found = analysed("mlp")
    name = found.partition.levels[0].boundary
    with pytest.raises(GraphError, match=f"called '{name}x'; did you mean '{name}'"):
        partition(found.program, found.axes, (f"{name}x",))


@pytest.mark.parametrize("granularity", [0, -1, True, 2.5, "blocks"])
def test_what_granularity_must_be(granularity):
    found = analysed("mlp")
    with pytest.raises(GraphError, match="granularity must be"):
        partition(found.program, found.axes, granularity)


# ---------------------------------------------------------------------------------- sharing and outputs


def test_a_parameter_of_two_levels_belongs_to_the_first():
    found = analysed("shared_layers").partition
    assert any("is shared between levels" in note for note in found.notes)


class Recurrent(nn.Module):
    """A tuple-valued node with parameters, whose parts are both used."""

    def __init__(self, both_out):
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.first, self.second = nn.Linear(6, 3), nn.Linear(6, 3)
        self.both_out = both_out

    def forward(self, x):
        y, (h, _) = self.lstm(x)
        a, b = self.first(y[:, -1]), self.second(h[0])
        return (a, b) if self.both_out else a + b


@pytest.mark.parametrize("both_out", [False, True])
@pytest.mark.parametrize("granularity", ["block", "layer"])
def test_tuples_end_no_level(both_out, granularity):
    found = levels(Recurrent(both_out), torch.randn(2, 5, 4), granularity=granularity)
    assert not any(level.boundary.startswith("lstm") for level in found.levels)
    names = [p for level in found.levels for p in level.parameters]
    assert sorted(names) == sorted(n for n, _ in Recurrent(True).named_parameters())


def test_every_output_ends_a_level():
    found = analysed("two_outputs")
    final = next(node for node in reversed(found.program.module.graph.nodes) if node.op == "output")
    boundaries = {level.boundary for level in found.partition.levels}
    assert {node.name for node in final.all_input_nodes} <= boundaries


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.auxiliary = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.used(x)


def test_parameters_that_evaluation_does_not_use_are_noted():
    found = levels(Unused(), torch.randn(2, 4))
    assert "2 parameters are not used in evaluation mode (auxiliary.weight, ..)" in found.notes[0]


def test_no_output_depends_on_the_input():
    graph = fx.Graph()
    graph.placeholder("x")
    root = nn.Module()
    root.register_parameter("w", nn.Parameter(torch.ones(3)))
    graph.output(graph.get_attr("w"))
    with pytest.raises(GraphError, match="returns no tensor that depends on its inputs"):
        partition(Program("constant", fx.GraphModule(root, graph), (torch.ones(2, 3),), "fx"), NO_AXES)


def test_what_a_level_says():
    first = analysed("vgg11_bn").partition.levels[0]
    assert first.name == "features.0"
    assert first.operators[:2] == ("Conv2d 3x3", "BatchNorm2d")
    assert first.shape == (-1, 4, 32, 32)
    assert first.neuron_axis == 1
    assert first.space == 0
    assert first.inputs == ("x",)
    assert model("vgg11_bn").get_parameter(first.parameters[0]).ndim == 4


# --------------------------------------------------------------------------------------------- the time


def chain(count: int) -> Program:
    """A long residual network."""
    graph, root = fx.Graph(), nn.Module()
    x = graph.placeholder("x")
    root.layer = nn.Linear(4, 4)
    for i in range(count // 3):
        root.add_module(f"l{i}", nn.Linear(4, 4))
        y = graph.call_function(torch.relu, (graph.call_module(f"l{i}", (x,)),))
        x = graph.call_function(torch.add, (x, y))
    graph.output(x)
    return Program("chain", fx.GraphModule(root, graph), (torch.randn(2, 4),), "fx")


def test_ten_thousand_nodes_take_seconds():
    program = chain(10_000)
    start = time.process_time()
    found = partition(program, NO_AXES)
    assert time.process_time() - start < 60  # about 5 s, nearly all of it torch's meta kernels
    assert len(found.levels) == 3333


@pytest.mark.parametrize(("granularity", "count"), [("layer", 333), (50, 50)])
def test_long_networks_at_other_granularities(granularity, count):
    assert len(partition(chain(1000), NO_AXES, granularity).levels) == count


class Joined(nn.Module):
    """Residual blocks for each of two inputs, and blocks that all read what the first makes."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(6))
        self.start = nn.Linear(5, 6)
        self.first = nn.ModuleList(nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 6)) for _ in range(4))
        self.table = nn.Embedding(11, 6)
        self.second = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)) for _ in range(4))
        self.reads = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.end = nn.Linear(6, 3)

    def forward(self, x, tokens):
        x = self.start(x) * self.scale
        for block in self.first:
            x = x + block(x)
        y = self.table(tokens)
        for block, read in zip(self.second, self.reads, strict=True):
            y = y + block(y) * read(x)
        return self.end(y)


def test_inputs_and_memories_do_not_tie_blocks_together():
    found = analyse(Joined(), (torch.randn(2, 5), torch.tensor([3, 4]))).partition
    names = [level.name for level in found.levels]
    assert [name for name in names if name.startswith("first")] == [f"first.{i}" for i in range(4)]
    assert len(names) <= 11
    assert all(names)


def test_levels_of_the_network_s_own_parameters_have_names():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.randn(1, 1, 6))
            self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)
            self.norm = nn.LayerNorm(6)

        def forward(self, x):
            h = self.norm(torch.cat([self.token.expand(x.shape[0], -1, -1), self.a(x)], 1).flip(1))
            return self.b(h)

    assert all(level.name for level in analyse(Own(), torch.randn(2, 4, 5), granularity="layer").partition.levels)
