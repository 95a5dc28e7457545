"""A graph with other widths runs, describes itself truly, and says where the code does not allow it."""

import pytest
import torch
from laws import analysed, model, outputs
from torch import nn

from fxfuse.errors import MethodError
from fxfuse.models_zoo.randomise import randomise
from fxfuse.models_zoo.zoo import ZOO
from fxfuse.passes.resize import resize, scale
from fxfuse.pipeline import analyse


@pytest.mark.parametrize("name", ["mlp", "vgg11_bn", "resnet20", "lstm", "gru", "dense", "unet", "mobile_se", "volume"])
def test_a_resized_network_is_the_class_at_another_width(name):
    first, second = (analysed(name, width) for width in ZOO[name].widths[:2])
    sizes = {s.id: s.size for s in second.axes.spaces}
    found = resize(first, sizes)
    shapes = {k: v.shape for k, v in found.program.module.state_dict().items()}
    assert shapes == {k: v.shape for k, v in model(name, ZOO[name].widths[1]).state_dict().items()}
    found.program.module.load_state_dict(second.program.module.state_dict())
    inputs = ZOO[name].example(4)
    for x, y in zip(outputs(found.program.module, inputs), outputs(second.program.module, inputs), strict=True):
        assert torch.allclose(x, y, atol=1e-5)
    assert [s.size for s in found.axes.spaces] == [s.size for s in second.axes.spaces]
    assert all(found.axes.state[k] == second.axes.state[k] for k in found.axes.state)


def test_layers_describe_themselves_truly():
    found = scale(analysed("mobile_se"), 1.5).program.module
    own = model("mobile_se", 12)
    for (_, mine), (_, theirs) in zip(found.named_modules(), own.named_modules(), strict=False):
        if isinstance(mine, nn.Conv2d | nn.BatchNorm2d | nn.Linear) and type(mine) is type(theirs):
            weight = mine.weight
            assert isinstance(weight, torch.Tensor)
            text = repr(mine)
            if isinstance(mine, nn.Conv2d):
                assert (mine.out_channels, mine.in_channels) == (weight.shape[0], weight.shape[1] * mine.groups), text


def test_the_original_stays_as_it_is():
    found = analysed("mlp")
    before = {k: v.clone() for k, v in found.program.module.state_dict().items()}
    scale(found, 2.0)
    assert all(torch.equal(v, before[k]) for k, v in found.program.module.state_dict().items())


@pytest.mark.parametrize("factor", [0, -1.0, float("nan")])
def test_a_factor_must_be_positive(factor):
    with pytest.raises(MethodError, match="must be a positive factor"):
        scale(analysed("mlp"), factor)


def test_no_space_becomes_empty():
    assert {s.size for s in scale(analysed("mlp"), 0.001).axes.spaces} == {1}


def test_heads_keep_their_number():
    first = analysed("vit")
    found = scale(first, 2.0)
    owners = {s.outer for s in first.axes.spaces} - {None}
    assert owners
    for space, before in zip(found.axes.spaces, first.axes.spaces, strict=True):
        assert space.size == (before.size if space.id in owners else 2 * before.size)


class Numbers(nn.Module):
    """The width of ``fixed`` is repeated in the code; that of ``middle`` is free."""

    def __init__(self, free):
        super().__init__()
        self.fixed, self.first, self.second = nn.Linear(4, 6), nn.Linear(2, 3), nn.Linear(4, 3)
        self.middle = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)) if free else nn.Identity()

    def forward(self, x):
        h = torch.relu(self.fixed(self.middle(x)))
        return self.first(h[:, :2]) + self.second(h[:, 2:6])


def test_what_the_code_fixes_stays_and_is_said():
    found = analyse(randomise(Numbers(True)), torch.randn(2, 4))
    scaled = scale(found, 2.0)
    assert "widths that are numbers in the model's code stay as they are: fixed.weight:0" in scaled.program.notes[-1]
    assert scaled.program.module.get_parameter("middle.0.weight").shape == (16, 4)
    assert scaled.program.module.get_parameter("fixed.weight").shape == (6, 8)


def test_nothing_can_be_scaled():
    found = analyse(randomise(Numbers(False)), torch.randn(2, 4), name="net")
    with pytest.raises(MethodError, match=r"net cannot be built at the requested width: .* Give a target architecture"):
        scale(found, 2.0)
    with pytest.raises(MethodError, match="net cannot be built at the requested width"):
        resize(found, {s.id: 2 * s.size for s in found.axes.spaces})
