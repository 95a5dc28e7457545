"""Modules kept whole, and parts of networks: what is traced, what is said, and what cannot be."""

import pytest
import torch
import torch.nn.functional as F
from laws import assert_faithful
from torch import Tensor, fx, nn

from fxfuse.errors import TraceError
from fxfuse.models_zoo import ZOO, randomise
from fxfuse.passes.trace import trace


def test_a_leaf_can_be_traced_itself():
    attention = randomise(nn.MultiheadAttention(8, 2, batch_first=True), seed=1).eval()
    x = torch.randn(2, 5, 8)
    module = trace(attention, (x, x, x)).module
    assert_faithful(attention, module, (x, x, x))


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        features = self.backbone(torch.stack(images))
        return [f[f > f.mean()] for f in features]


def test_a_submodule_is_traced_on_what_it_receives():
    model = randomise(Backbone(), seed=1).eval()
    program = trace(model, [torch.randn(3, 8, 8), torch.randn(3, 8, 8)], submodule="backbone")
    assert list(program.module.state_dict()) == list(model.backbone.state_dict())
    assert program.example[0].shape == (2, 3, 8, 8)
    with pytest.raises(TraceError, match="did you mean 'backbone'"):
        trace(model, [torch.randn(3, 8, 8)], submodule="backbon")


class DataBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if x.sum() > 0:
            return x
        return -x


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(4, 4)
        self.branch = DataBranch()

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(F.relu(self.before(x)))


def test_a_branch_on_data_names_the_line_and_the_cure():
    with pytest.raises(TraceError, match=r"test_leaves\.py:\d+ `if x\.sum\(\) > 0:`.*--leaf.*--submodule"):
        trace(DataBranch(), torch.randn(2, 4))


def test_the_innermost_module_that_cannot_be_followed_becomes_a_leaf():
    model = randomise(Wrapped(), seed=1).eval()
    program = trace(model, torch.randn(2, 4))
    assert any("branch is kept as one opaque node" in note for note in program.notes)
    assert_faithful(model, program.module, (torch.randn(3, 4),))


def test_named_leaves_stay_whole():
    model = randomise(ZOO["resnet20"].factory(), seed=1).eval()
    kind = type(next(m for n, m in model.named_modules() if n.count(".") == 1 and m._modules)).__name__
    module = trace(model, ZOO["resnet20"].example(), leaves=[kind]).module
    kinds = {type(module.get_submodule(str(n.target))).__name__ for n in module.graph.nodes if n.op == "call_module"}
    assert kind in kinds


class Whole(nn.Module):
    """A network that no front end can follow around a part that both can, which calls a part that none can."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.rest = Wrapped(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.part(x)
        return self.rest(y[y.sum(1) > 0])


@pytest.mark.parametrize("leaf", ["part.branch", "branch", "DataBranch"])
def test_leaves_of_a_submodule_are_named_from_the_whole_or_from_the_part(leaf):
    model = randomise(Whole(), seed=1).eval()
    program = trace(model, torch.randn(2, 4), submodule="part", leaves=[leaf])
    assert program.front_end == "fx"
    assert_faithful(model.part, program.module, (torch.randn(3, 4),))
    assert not any("leaf" in note or "kept as one" in note for note in program.notes)


def test_a_leaf_that_is_not_there_is_told():
    with pytest.raises(
        TraceError, match="no module of the path or class 'brunch' to keep whole; did you mean 'branch'"
    ):
        trace(Wrapped(), torch.randn(2, 4), leaves=["brunch"])


def test_export_keeps_no_leaves():
    with pytest.raises(TraceError, match=r"torch\.export goes through every module .* leave out the leaves"):
        trace(Wrapped(), torch.randn(2, 4), leaves=["before"], front_end="export")


class Unfollowed(nn.Module):
    """torch.fx cannot follow its root; torch.export can."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        assert not isinstance(x, fx.Proxy)
        return self.first(x)


def test_a_leaf_that_was_opened_is_noted():
    program = trace(Unfollowed(), torch.randn(2, 4), leaves=["first"])
    assert program.front_end == "export"
    assert any("first is not kept whole" in note for note in program.notes)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.inner(x) * scale


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Scaled()

    def forward(self, x: Tensor) -> Tensor:
        y = self.part(x, scale=x.mean(1, keepdim=True))
        return y[y.sum(1) > 0]


@pytest.mark.parametrize("front_end", ["fx", "export"])
def test_a_submodule_is_traced_by_either_front_end(front_end):
    model = randomise(Tower(), seed=1).eval()
    program = trace(model, torch.randn(2, 4), submodule="part", front_end=front_end)
    assert (program.front_end, program.inputs, program.keywords) == (front_end, ("x", "scale"), ("scale",))
    given = (torch.randn(3, 4), torch.rand(3, 1))
    torch.testing.assert_close(program.module(*given), model.part(*given))
    assert list(program.module.state_dict()) == list(model.part.state_dict())
