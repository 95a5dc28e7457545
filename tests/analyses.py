"""Hand-made analyses and results for the tests of what is written about them: no pass of the compiler takes part."""

import torch
from torch import fx, nn

from fxfuse.types import (
    Analysis,
    Axes,
    FuseResult,
    Leaf,
    Level,
    LevelReport,
    Opaque,
    Partition,
    Product,
    Program,
    Score,
    Space,
    TensorAxes,
)


class Residual(nn.Module):
    """A stem, a residual block and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 4 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = x + torch.relu(self.norm(self.block(x)))
        return self.head(x.flatten(1))


def residual() -> fx.GraphModule:
    torch.manual_seed(0)
    return fx.symbolic_trace(Residual())


def analysis(name: str = "net", opaque: tuple[Opaque, ...] = ()) -> Analysis:
    program = Program(name, residual(), (torch.randn(2, 3, 4, 4),), "fx", notes=("dropped 1 dropout",))
    stream, image = Leaf(8, 0), Leaf(3)
    state = {
        "stem.weight": TensorAxes((stream, image, Leaf(3), Leaf(3))),
        "stem.bias": TensorAxes((stream,)),
        "block.weight": TensorAxes((stream, stream, Leaf(3), Leaf(3)), frozenset({(1, 0)})),
        "head.weight": TensorAxes((Leaf(5), Product((stream, Leaf(16)))), frozenset({(1, 0)})),
    }
    axes = Axes((Space(0, 8, "stream"),), state, {}, {0: ("relu",)}, opaque)
    levels = (
        level(0, "stem", ("stem", "relu"), ("x",), ("stem.weight", "stem.bias"), ("Conv2d 3x3", "relu")),
        level(
            1,
            "block",
            ("block", "norm", "relu_1", "add"),
            ("relu",),
            ("block.weight", "block.bias", "norm.weight", "norm.bias"),
            ("Conv2d 3x3", "BatchNorm2d", "relu", "add"),
        ),
        Level(
            2, "head", "head", ("flatten", "head"), ("add",), ("head.weight", "head.bias"),
            ("flatten", "Linear"), (-1, 5), None, None,
        ),
    )  # fmt: skip
    return Analysis(program, axes, Partition(levels, "block", ("3 levels",)))


def level(
    index: int,
    name: str,
    nodes: tuple[str, ...],
    inputs: tuple[str, ...],
    parameters: tuple[str, ...] = (),
    operators: tuple[str, ...] = ("Linear",),
) -> Level:
    return Level(index, name, nodes[-1], nodes, inputs, parameters, operators, (-1, 8, 4, 4), 1, 0)


def graph_of(names: list[str], inputs: dict[str, tuple[str, ...]]) -> Analysis:
    """An analysis whose levels have these names and read these nodes; the last one is the output."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    nodes = {"x": x}
    for name in names:
        nodes[name] = graph.call_function(torch.relu, (x,), name=name)
    graph.output(nodes[names[-1]])
    program = Program("graph", fx.GraphModule(nn.Module(), graph), (torch.zeros(2, 3),), "fx")
    levels = tuple(level(i, name, (name,), inputs[name]) for i, name in enumerate(names))
    return Analysis(program, Axes((Space(0, 8, "s"),), {}, {}, {}), Partition(levels, "layer"))


def chain(length: int) -> Analysis:
    names = [f"l{i}" for i in range(length)]
    return graph_of(names, {name: (names[i - 1] if i else "x",) for i, name in enumerate(names)})


def dense(length: int) -> Analysis:
    names = [f"d{i}" for i in range(length)]
    return graph_of(names, {name: ("x", *names[:i]) for i, name in enumerate(names)})


def result(
    parents: int = 2, scores: tuple[Score, ...] | None = None, levels: tuple[LevelReport, ...] | None = None
) -> FuseResult:
    own = analysis("net", (Opaque("torch.roll", "roll_1", "swin.py:142", "no rule"),))
    if scores is None:
        scores = (
            Score("parent 0", 0.8869, 0.41, 0.9, 1000),
            Score("parent 1", 0.8482, 0.52, 0.88, 1000),
            Score("ensemble (probabilities)", 0.9662, 0.13, 1.0, 2000),
            Score("average", 0.8157, 0.77, 0.8, 1000),
            Score("fused", 0.9571, 0.15, 0.97, 1000),
        )
    if levels is None:
        levels = (
            LevelReport("stem", "stream", 8, (8, 8), 0.1, 0.2, 0.05, "linear"),
            LevelReport("block", "stream", 8, (8, 8), 0.1, 0.4, 0.31, "gradient", 1.5),
            LevelReport("head", None, None, (), None, None, None, "none", note="pinned"),
        )
    family = tuple(analysis(f"parent {i}") for i in range(parents))
    return FuseResult(
        residual(), own, family, {}, levels, scores, ("used 400 images",), {"trace": 0.5, "fit": 2.0}, {"seed": 0}
    )
