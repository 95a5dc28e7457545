"""Fusing a network with a permuted copy of itself gives its function back, by every method, on every zoo model.

The copy's neurons are the network's own in another order, so a method that looks at neurons must put each on its twin.
Then the average of equal weights is those weights. What is left is float32 rounding, 1e-7 per operation: in the copy's
activations, whose sums run in another order, and in means of two equal numbers. It grows with depth, to 4e-7 here; the
tolerance is 1e-5. Only ``average`` looks at no neuron: for it, the copy is not permuted.

Neurons that differ from others by less than rounding cannot be told apart, and need not be. None are dead here: zoo
weights are random, and statistics see every input that the outputs are compared on.
"""

import functools

import pytest
import torch
from laws import SOLVERS, analysed, data, distance, grouped, model, outputs, statistics, with_permuted_copy

from fxfuse.models_zoo.zoo import ZOO
from fxfuse.passes.correspond import Correspondence, correspond
from fxfuse.pipeline import fuse
from fxfuse.presets import METHODS
from fxfuse.recipe import FitSettings
from fxfuse.types import SpaceStatistics

CLOSE = 1e-5
EVERY = pytest.mark.parametrize("name", ZOO)


def test_there_is_a_law_for_every_solver():
    assert {METHODS[method].solver for method in SOLVERS} == {preset.solver for preset in METHODS.values()}


@functools.cache
def parents(name: str) -> tuple[Correspondence, dict[int, SpaceStatistics]]:
    pairs = with_permuted_copy(name)
    return pairs, statistics(pairs, data(name))


@EVERY
def test_every_space_of_the_zoo_is_seen(name):
    pairs, found = parents(name)
    inner = {s.id for s in pairs.reference.axes.spaces if s.outer is not None}
    assert {s.id for s in pairs.reference.axes.spaces} - set(found) <= inner


@EVERY
@pytest.mark.parametrize("method", SOLVERS)
def test_fusing_with_a_permuted_copy_gives_the_function_back(name, method):
    inputs = ZOO[name].example(6, seed=9)
    expected = outputs(analysed(name).program.module, inputs)
    if METHODS[method].solver == "average":
        own = analysed(name)
        fused = grouped(correspond(own, [own, own]), {}, method)
    else:
        pairs, found = parents(name)
        fused = grouped(pairs, found, method)
    assert distance(outputs(fused, inputs), expected) < CLOSE


@pytest.mark.parametrize("importance", ["conductance", "magnitude"])
@pytest.mark.parametrize("name", ["mlp", "digits_net", "vit", "lstm", "dense", "packed_qkv"])
def test_the_same_with_other_importances(name, importance):
    pairs, _ = parents(name)
    found = statistics(pairs, data(name, 24), importance)
    inputs = ZOO[name].example(6, seed=9)
    fused = grouped(pairs, found, "kmeans")
    assert distance(outputs(fused, inputs), outputs(pairs.reference.program.module, inputs)) < CLOSE


@EVERY
def test_all_the_weight_on_one_parent_gives_that_parent(name):
    first, second = analysed(name), analysed(name, seed=1)
    pairs = correspond(first, [first, second])
    inputs = ZOO[name].example(6, seed=9)
    found = statistics(pairs, data(name, 16))
    for method in ("average", "hungarian"):
        fused = grouped(pairs, found, method, (1.0, 0.0))
        assert distance(outputs(fused, inputs), outputs(first.program.module, inputs)) < CLOSE, method


# ------------------------------------------------------------------------------------------ the pipeline


def base(method, parents):
    """The base model of a method that needs one."""
    return {"base": parents[0]} if METHODS[method].needs_base else {}


FEW = FitSettings(steps=4, joint_steps=2, batch_size=16)
FITTED = [("mlp", method) for method in METHODS]
FITTED += [(name, f"kmeans-{fit}") for name in ("digits_net", "packed_qkv") for fit in ("linear", "gradient")]


@pytest.mark.parametrize(("name", "method"), FITTED)
def test_every_method_gives_one_parent_back(name, method):
    parent = model(name)
    result = fuse([parent], calibration=data(name), method=method, fit=FEW, **base(method, [parent]))
    inputs = ZOO[name].example(6, seed=9)
    assert distance(outputs(result.module, inputs), outputs(parent, inputs)) < CLOSE


@pytest.mark.parametrize(("name", "method"), [(n, m) for n, m in FITTED if METHODS[m].solver != "average"])
def test_every_method_gives_a_network_and_its_permuted_copy_back(name, method):
    pairs = with_permuted_copy(name)
    modules = [parent.program.module for parent in pairs.parents]
    result = fuse(modules, calibration=data(name), method=method, fit=FEW)
    inputs = ZOO[name].example(6, seed=9)
    found, expected = outputs(result.module, inputs), outputs(modules[0], inputs)
    if (
        METHODS[method].budget is not None and METHODS[method].dial != "neurons"
    ):  # branches answer by the logarithm of probabilities
        expected = [y.log_softmax(1) for y in expected]
    assert distance(found, expected) < CLOSE


@pytest.mark.parametrize("method", [name for name, preset in METHODS.items() if not preset.needs_base])
def test_all_the_weight_on_one_parent_by_every_method(method):
    parents = [model("mlp", seed=seed) for seed in (0, 1)]
    result = fuse(parents, calibration=data("mlp"), method=method, fit=FEW, weights=(0.0, 1.0))
    inputs = ZOO["mlp"].example(6, seed=9)
    assert distance(outputs(result.module, inputs), outputs(parents[1], inputs)) < CLOSE


@pytest.mark.parametrize("method", METHODS)
def test_one_seed_gives_the_same_bits(method):
    name = "digits_net" if METHODS[method].joint else "mlp"
    parents = [model(name, seed=seed) for seed in (0, 1)]
    first, second = (
        fuse(parents, calibration=data(name), method=method, fit=FEW, seed=3, **base(method, parents)).state_dict()
        for _ in range(2)
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
