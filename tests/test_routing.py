"""Routers choose the parent that they say, and a choice among copies is the network."""

import pytest
import torch
from laws import CPU, analysed, data, distance, outputs, with_permuted_copy

from fxfuse.errors import MethodError
from fxfuse.label_space import label_space
from fxfuse.models_zoo.zoo import ZOO
from fxfuse.passes.correspond import correspond
from fxfuse.passes.partial import selected
from fxfuse.passes.routing import Choice, Confidence, Places, find_places
from fxfuse.samples import TensorSamples

ROUTERS = ["confidence", "distance", "gate"]
PLACES = Places("out", 1, 2, False, None, None)


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("name", ["mlp", "digits_net", "vit", "unet", "two_outputs", "dict_output"])
def test_a_choice_among_a_network_and_its_copy_is_the_network(name, router):
    pairs = with_permuted_copy(name)
    module = selected(pairs, (0.5, 0.5), router, data(name), None, CPU)
    inputs = ZOO[name].example(5, seed=4)
    assert distance(outputs(module, inputs), outputs(pairs.reference.program.module, inputs)) < 1e-5


@pytest.mark.parametrize("router", ROUTERS)
def test_every_sample_has_one_parents_answers(router):
    parents = [analysed("mlp", None, seed) for seed in range(3)]
    pairs = correspond(parents[0], parents)
    module = selected(pairs, (0.5, 0.0, 0.5), router, data("mlp"), None, CPU)
    inputs = ZOO["mlp"].example(40, seed=4)
    (found,) = outputs(module, inputs)
    one, two = (outputs(pairs.parents[p].program.module, inputs)[0] for p in (0, 2))
    near = torch.stack([(found - z).abs().amax(1) for z in (one, two)], 1)
    assert bool((near.amin(1) < 1e-5).all())
    assert 0 < int((near[:, 0] < 1e-5).sum()) < 40 or router != "confidence"


def test_confidence():
    sure, unsure = torch.tensor([[4.0, 0.0], [0.1, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    module = Choice(Confidence(PLACES, 2), (0, 1), 2)
    assert module(sure, unsure, sure, unsure).tolist() == [[4.0, 0.0], [0.0, 1.0]]


def test_parents_of_other_classes_answer_over_the_union():
    labels = label_space([[0, 1], [1, 2]], ("a", "b"), (0.5, 0.5))
    a, b = torch.tensor([[4.0, 0.0], [0.1, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    found = Choice(Confidence(PLACES, 2), (0, 1), 2, PLACES, labels)(a, b, a, b)
    assert found.argmax(1).tolist() == [0, 2]
    assert torch.allclose(found[0, :2], a[0].log_softmax(0))
    assert found[0, 2] == found[1, 0] == -15


def test_a_gate_learns_from_labels():
    """The first parent is right where it finds the first class likely, the second elsewhere, however sure they are."""
    parents = [analysed("mlp", None, seed) for seed in (0, 1)]
    pairs = correspond(parents[0], parents)
    inputs = ZOO["mlp"].example(400, seed=1)
    own = [outputs(parent.program.module, inputs)[0] for parent in pairs.parents]
    likely = own[0].log_softmax(1)[:, 0]
    labels = torch.where(likely > likely.median(), own[0].argmax(1), own[1].argmax(1))
    module = selected(pairs, (0.5, 0.5), "gate", TensorSamples(inputs, labels), None, CPU)
    right = [float((z.argmax(1) == labels).double().mean()) for z in (*own, outputs(module, inputs)[0])]
    assert right[2] > max(right[:2]) + 0.1


def test_refused():
    pairs = correspond(analysed("mlp"), [analysed("mlp")])
    with pytest.raises(MethodError, match="unknown router 'gaet': did you mean 'gate'"):
        selected(pairs, (1.0,), "gaet", None, None, CPU)
    with pytest.raises(MethodError, match="router 'gate' is fitted to calibration data"):
        selected(pairs, (1.0,), "gate", None, None, CPU)


def test_what_is_looked_at():
    pairs = correspond(analysed("digits_net"), [analysed("digits_net")])
    places = find_places(pairs)
    assert (places.axis, places.dims, places.normalised, places.neurons) == (1, 2, False, 1)
    assert places.nodes()[0] != places.features
