from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fxfuse.models_zoo import ZOO, randomise
from fxfuse.models_zoo.convnets import resnet18, resnet20, vgg11_bn
from fxfuse.models_zoo.mlp import (
    OTFusionMLP,
    load_neuron_interpolation,
    load_otfusion,
    mlp,
    neuron_interpolation_mlp,
)
from fxfuse.models_zoo.vit import vit_small


def outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(model(*inputs)) if isinstance(leaf, Tensor)]


def build(name: str, width: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    entry = ZOO[name]
    return entry.factory() if width is None else entry.factory(width=width)


@pytest.mark.parametrize("name", ZOO)
def test_randomised_outputs_are_of_order_one_and_depend_on_the_sample(name: str) -> None:
    model = randomise(build(name), seed=1).eval()
    for output in outputs(model, ZOO[name].example(batch=8)):
        assert len(output) == 8
        assert output.isfinite().all()
        assert 0.03 < output.std(0).mean() < 30
        assert output.abs().max() < 300


@pytest.mark.parametrize("name", ZOO)
def test_batches_are_independent_samples(name: str) -> None:
    model = randomise(build(name), seed=1).double().eval()
    example = [x.double() if x.is_floating_point() else x for x in ZOO[name].example(batch=5)]
    whole = outputs(model, tuple(example))
    part = outputs(model, tuple(x[:3] for x in example))
    for a, b in zip(whole, part, strict=True):
        torch.testing.assert_close(a[:3], b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ZOO)
def test_widths_change_parameters_but_not_shapes_of_outputs(name: str) -> None:
    entry = ZOO[name]
    usual = build(name)
    shapes = [y.shape for y in outputs(usual.eval(), entry.example())]
    counts = []
    for width in entry.widths:
        model = build(name, width).eval()
        counts.append(sum(p.numel() for p in model.parameters()))
        assert [y.shape for y in outputs(model, entry.example())] == shapes
        assert list(model.state_dict()) == list(usual.state_dict())
    assert counts[0] == sum(p.numel() for p in usual.parameters())
    assert len(set(counts)) == len(entry.widths)


@pytest.mark.parametrize("name", ZOO)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = randomise(build(name)).train()
    loss = sum(y.square().sum() for y in outputs(model, ZOO[name].example()))
    assert isinstance(loss, Tensor)
    loss.backward()  # type: ignore[no-untyped-call]
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", ZOO)
def test_randomise_leaves_no_neuron_like_another_and_repeats(name: str) -> None:
    model, again, other = (randomise(build(name), seed=seed) for seed in (4, 4, 5))
    for key, value in model.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        assert torch.equal(value, again.state_dict()[key]), key
        assert not torch.equal(value, other.state_dict()[key]), key
        assert value.unique().numel() > 0.99 * value.numel(), key
        if "running_var" in key:
            assert value.min() >= 0.5
            assert value.max() <= 2


def test_example_repeats_and_has_batch_three() -> None:
    for entry in ZOO.values():
        first, second = entry.example(), entry.example()
        assert all(len(x) == 3 for x in first)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_usual_sizes() -> None:
    def count(model: nn.Module) -> int:
        return sum(p.numel() for p in model.parameters())

    image = torch.zeros(2, 3, 32, 32)
    assert count(vgg11_bn()) == 9_231_114
    assert count(resnet18()) == 11_173_962
    assert count(resnet20()) == 269_722 + 2_752  # the original's, and two projections: (16 x 32 + 64) + (32 x 64 + 128)
    assert [tuple(model(image).shape) for model in (vgg11_bn(8), resnet20(8), vit_small())] == [(2, 10)] * 3


def test_an_mlp_needs_two_widths() -> None:
    with pytest.raises(ValueError, match="needs at least an input and an output"):
        mlp((784,))


@pytest.mark.parametrize(
    ("make", "load"), [(neuron_interpolation_mlp, load_neuron_interpolation), (OTFusionMLP, load_otfusion)]
)
def test_published_weights_are_read(
    tmp_path: Path, make: Callable[[], nn.Module], load: Callable[[Path], nn.Module]
) -> None:
    model = randomise(make())
    save_file(model.state_dict(), tmp_path / "parent.safetensors")
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(load(tmp_path / "parent.safetensors")(x), model(x))
    with pytest.raises(FileNotFoundError, match="there is no weight file"):
        load(tmp_path / "nothing.safetensors")
