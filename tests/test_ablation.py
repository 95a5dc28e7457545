"""Feature ablation against captum, and what counts as one neuron."""

import warnings

import pytest
import torch
from captum.attr import LayerFeatureAblation
from zoo_parents import CPU, zoo_parents

from fxfuse.errors import MethodError
from fxfuse.models_zoo.randomise import randomise
from fxfuse.models_zoo.zoo import ZOO
from fxfuse.passes.ablation import units
from fxfuse.passes.importance import feature_ablation
from fxfuse.passes.observe import Observer, ignore
from fxfuse.types import Concat, Leaf, Product, TensorAxes


def test_feature_ablation_equals_captum() -> None:
    for name, layer, node in (("mlp", "1", "_1"), ("digits_net", "bn1", "bn1")):
        (parent,) = zoo_parents(name, (None,))
        observer = Observer(parent.program, (node,), CPU, parent.axes)
        model, inputs = randomise(ZOO[name].factory(), 0).eval(), ZOO[name].example(5, seed=3)
        ours = feature_ablation(observer, inputs, None, ignore)[node]
        target = model(*inputs).argmax(1)
        shape = ours.shape[1:]
        mask = torch.arange(shape[0]).reshape(1, -1, *[1] * (len(shape) - 1)).expand(1, *shape)
        method = LayerFeatureAblation(model, model.get_submodule(layer))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = method.attribute(inputs[0], target=target, layer_mask=mask).detach().abs()
        per_neuron = ours.flatten(2).sum(2) if ours.ndim > 2 else ours
        expected = theirs.flatten(2)[:, :, 0] if theirs.ndim > 2 else theirs
        assert torch.allclose(per_neuron, expected, rtol=1e-3, atol=1e-5), name


def test_units_of_products_concatenations_and_batches() -> None:
    heads = Product((Leaf(2, 0), Leaf(3, 1), Leaf(2)))
    ids, count = units(TensorAxes((Leaf(4), heads)), torch.Size((7, 12)))
    assert count == 6
    assert ids.tolist() == [[0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]]
    ids, count = units(TensorAxes((Leaf(4), Concat((Leaf(2, 0), Leaf(1), Leaf(2, 1))), Leaf(3))), torch.Size((4, 5, 3)))
    assert count == 5
    assert ids.flatten().tolist() == [0, 1, 2, 3, 4]


def test_without_axes_it_says_so() -> None:
    (parent,) = zoo_parents("mlp", (None,))
    with pytest.raises(MethodError, match="give the observer axes"):
        feature_ablation(Observer(parent.program, ("_1",), CPU), ZOO["mlp"].example(2), None, ignore)
