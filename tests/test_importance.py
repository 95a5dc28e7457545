from typing import Any, get_args

import pytest
import torch
from captum.attr import LayerConductance, LayerGradientXActivation
from torch import Tensor, nn
from zoo_parents import CPU, zoo_parents

from fxfuse.errors import MethodError
from fxfuse.layouts import neurons
from fxfuse.models_zoo.randomise import randomise
from fxfuse.models_zoo.zoo import ZOO
from fxfuse.passes.calibrate import calibrate
from fxfuse.passes.importance import (
    IMPORTANCES,
    ImportanceName,
    answer,
    choose,
    class_axis,
    conductance,
    find_importance,
    gradient_activation,
    magnitude,
    normalise,
)
from fxfuse.passes.observe import Observer, ignore
from fxfuse.progress import QuietProgress
from fxfuse.samples import TensorSamples
from fxfuse.types import Space


def watch(name: str, nodes: tuple[str, ...]) -> tuple[Observer, nn.Module, tuple[Tensor, ...]]:
    (parent,) = zoo_parents(name, (None,))
    observer = Observer(parent.program, nodes, CPU)
    return observer, randomise(ZOO[name].factory(), 0).eval(), ZOO[name].example(6, seed=3)


CASES = [("otfusion_mlp", ("fc1", "fc2", "fc3")), ("vgg11_bn", ("features.1", "features.9", "features.26"))]


@pytest.mark.parametrize(("name", "layers"), CASES)
@pytest.mark.parametrize("steps", [4, 8])
def test_conductance_equals_captum(name: str, layers: tuple[str, ...], steps: int) -> None:
    observer, model, inputs = watch(name, tuple(layer.replace(".", "_") for layer in layers))
    ours = conductance(observer, inputs, None, ignore, steps=steps)
    target = model(*inputs).argmax(1)
    for layer in layers:
        method = LayerConductance(model, model.get_submodule(layer))
        theirs = method.attribute(inputs[0], target=target, n_steps=steps, method="riemann_trapezoid").detach().abs()
        assert torch.allclose(ours[layer.replace(".", "_")], theirs, rtol=1e-4, atol=1e-6 * float(theirs.max()))


@pytest.mark.parametrize(("name", "layers"), CASES)
def test_gradient_activation_equals_captum_at_labels(name: str, layers: tuple[str, ...]) -> None:
    observer, model, inputs = watch(name, tuple(layer.replace(".", "_") for layer in layers))
    labels = torch.arange(6) % 7
    ours = gradient_activation(observer, inputs, labels, ignore)
    squared = gradient_activation(observer, inputs, labels, ignore, power=2)
    for layer in layers:
        theirs = LayerGradientXActivation(model, model.get_submodule(layer)).attribute(inputs[0], target=labels)
        theirs = theirs.detach().abs()
        node = layer.replace(".", "_")
        assert torch.allclose(ours[node], theirs, rtol=1e-4, atol=1e-6 * float(theirs.max()))
        assert torch.equal(squared[node], ours[node] ** 2)


def test_the_statistics_hold_conductance_summed_over_positions() -> None:
    (parent,) = zoo_parents("functional_conv", (None,))
    inputs = ZOO["functional_conv"].example(40)
    stats = calibrate([parent], TensorSamples(inputs), weights=(1.0,), device=CPU, importance="conductance")
    nodes = {nodes[0] for nodes in parent.axes.observed.values()}
    raw = conductance(Observer(parent.program, nodes, CPU), inputs, None, ignore)
    for space in parent.axes.spaces:
        (node,) = parent.axes.observed[space.id]
        (rows,) = neurons(raw[node], parent.axes.values[node], space)
        expected = normalise(normalise(rows.sum(0), 1.0), 1.0)
        assert torch.allclose(stats[space.id].importance, expected, rtol=1e-5)


def test_a_limit_on_samples_takes_evenly_spread_ones() -> None:
    (parent,) = zoo_parents("mlp", (None,))
    (x,) = ZOO["mlp"].example(100)
    options: dict[str, Any] = {"weights": (1.0,), "device": CPU, "importance": "conductance", "batch_size": 16}
    limited = calibrate([parent], TensorSamples((x,)), importance_samples=25, **options)
    alone = calibrate([parent], TensorSamples((x[3::4],)), importance_samples=None, **options)
    for number, stats in limited.items():
        assert torch.allclose(stats.importance, alone[number].importance, rtol=1e-5)
        assert stats.rows == 100


@pytest.mark.parametrize("name", ["lstm", "transformer_encoder", "two_outputs", "dict_output", "unet", "two_inputs"])
@pytest.mark.parametrize(
    "importance",
    ["conductance", "gradient-activation", "deeplift", "feature-ablation", "fisher", "magnitude", "norm-product"],
)
def test_every_kind_of_output_tells_neurons_apart(name: str, importance: ImportanceName) -> None:
    parents = zoo_parents(name)
    samples = TensorSamples(ZOO[name].example(4))
    stats = calibrate(parents, samples, weights=(0.5, 0.5), device=CPU, importance=importance)
    for s in stats.values():
        shares = torch.split(s.importance, [n * b for n, b in zip(s.widths, s.outer_widths, strict=True)])
        assert all(float(share.std()) > 0 and float(share.min()) > 0 for share in shares)
        assert [float(share.sum()) for share in shares] == pytest.approx([0.5, 0.5])


def test_token_models_say_that_conductance_was_replaced() -> None:
    class Notes(QuietProgress):
        said: tuple[str, ...] = ()

        def note(self, text: str) -> None:
            self.said = (*self.said, text)

    parents, notes = zoo_parents("lstm"), Notes()
    samples = TensorSamples(ZOO["lstm"].example(4))
    options: dict[str, Any] = {"weights": (0.5, 0.5), "device": CPU}
    given = calibrate(parents, samples, importance="conductance", progress=notes, **options)
    other = calibrate(parents, samples, importance="gradient-activation", **options)
    assert len(notes.said) == 1
    assert "used gradient x activation" in notes.said[0]
    assert all(torch.equal(given[k].importance, other[k].importance) for k in given)


def test_magnitude_is_the_mean_squared_norm_of_a_neurons_slices() -> None:
    (parent,) = zoo_parents("mlp", (None,))
    state = {k: v.double() for k, v in parent.program.module.state_dict().items()}
    space = parent.axes.spaces[0]
    into, shift = state["1.weight"].square().sum(1), state["1.bias"].square()
    out = state["3.weight"].square().sum(0)
    assert torch.allclose(magnitude(parent, space), (into + shift + out) / 3)


def test_magnitude_of_a_space_that_no_parameter_holds_is_even() -> None:
    (parent,) = zoo_parents("mlp", (None,))
    assert torch.equal(magnitude(parent, Space(99, 5, "none")), torch.ones(5, dtype=torch.float64))


def test_normalise() -> None:
    share = normalise(torch.tensor([0.0, 1.0, 3.0]), 0.5)
    assert float(share.sum()) == pytest.approx(0.5)
    assert float(share.min()) == pytest.approx(0.5e-3 / 3)
    assert torch.allclose(normalise(torch.zeros(4), 2.0), torch.full((4,), 0.5, dtype=torch.float64))
    assert torch.equal(normalise(torch.ones(4), 0.0), torch.zeros(4, dtype=torch.float64))


def test_the_class_axis() -> None:
    size = torch.Size
    assert class_axis(size((5,))) is None
    assert class_axis(size((5, 3))) == 1
    assert class_axis(size((5, 7, 3))) == 2
    assert class_axis(size((5, 3, 8, 8))) == 1
    assert class_axis(size((5, 3, 7)), size((5, 7))) == 1
    assert class_axis(size((5, 7, 3)), size((5, 7))) == 2
    assert class_axis(size((5, 8, 8, 3)), size((5, 8, 8))) == 3
    assert class_axis(size((5, 8, 8, 8)), size((5, 8, 8))) == 1


def test_labels_that_do_not_fit_leave_the_prediction() -> None:
    logits = torch.tensor([[1.0, 5.0, 2.0], [4.0, 0.0, 1.0]], requires_grad=True)
    total = answer(logits, choose(logits, torch.tensor([2, -100])))
    assert total is not None
    assert float(total.detach()) == 2.0 + 4.0


def test_the_table_has_exactly_the_names() -> None:
    assert set(IMPORTANCES) == set(get_args(ImportanceName))
    with pytest.raises(MethodError, match="did you mean 'magnitude'"):
        find_importance("magnitud")
