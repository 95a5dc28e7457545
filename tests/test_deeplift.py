"""DeepLIFT against captum, and the law that contributions sum to the rise of the answer."""

import warnings

import pytest
import torch
from captum.attr import LayerDeepLift
from torch import Tensor, nn
from zoo_parents import CPU, zoo_parents

from fxfuse.models_zoo.randomise import randomise
from fxfuse.models_zoo.zoo import ZOO
from fxfuse.passes.deeplift import reference_values
from fxfuse.passes.importance import _differentiate, deeplift
from fxfuse.passes.observe import Observer, ignore


def watch(name: str, nodes: tuple[str, ...]) -> tuple[Observer, nn.Module, tuple[Tensor, ...]]:
    (parent,) = zoo_parents(name, (None,))
    observer = Observer(parent.program, nodes, CPU)
    return observer, randomise(ZOO[name].factory(), 0).eval(), ZOO[name].example(6, seed=3)


@pytest.mark.parametrize(
    ("name", "layers"), [("mlp", ("1", "3")), ("vgg11_bn", ("features.1", "features.9", "features.26"))]
)
def test_deeplift_equals_captum(name: str, layers: tuple[str, ...]) -> None:
    nodes = {layer: f"_{layer}" if name == "mlp" else layer.replace(".", "_") for layer in layers}
    observer, model, inputs = watch(name, tuple(nodes.values()))
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    ours = deeplift(observer, inputs, None, ignore)
    target = model(*inputs).argmax(1)
    for layer, node in nodes.items():
        with warnings.catch_warnings():  # captum tells that it sets hooks
            warnings.simplefilter("ignore")
            theirs = LayerDeepLift(model, model.get_submodule(layer)).attribute(inputs[0], target=target)
        theirs = theirs.detach().abs()
        assert torch.allclose(ours[node], theirs, rtol=1e-3, atol=1e-5 * float(theirs.max())), layer


def test_deeplift_contributions_sum_to_the_rise_of_the_answer() -> None:
    observer, model, inputs = watch("mlp", ("_1",))
    secants, before = reference_values(observer, inputs)
    values, slopes = _differentiate(observer, inputs, None, None, None, secants)
    chosen = model(*inputs).argmax(1, keepdim=True)
    rise = model(*inputs).gather(1, chosen) - model(*(torch.zeros_like(x) for x in inputs)).gather(1, chosen)
    total = ((values["_1"] - before["_1"]) * slopes["_1"]).sum(1)
    assert torch.allclose(total, rise[:, 0], rtol=1e-4, atol=1e-5)
