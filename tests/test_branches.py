"""One graph of several: trunk and branches compute what they are made of, and it exports as one network."""

import copy

import pytest
import torch
from laws import CPU, analysed, data, distance, grouped, model, outputs, statistics, with_permuted_copy

from fxfuse.export import to_onnx
from fxfuse.models_zoo.zoo import ZOO
from fxfuse.passes.branches import branched, can_branch
from fxfuse.passes.combine import MeanOutput
from fxfuse.passes.correspond import correspond
from fxfuse.passes.group import group
from fxfuse.passes.partial import selected, side_by_side
from fxfuse.passes.rewrite import rewrite
from fxfuse.pipeline import fuse

SLOW = {"resnet18", "resnet20", "vgg11_bn", "unet", "dense"}
"""Covered by their smaller kin."""
NAMES = sorted(set(ZOO) - SLOW)


def mean(pairs, trunk, levels, groupings, shares=(0.5, 0.5)):
    return branched(pairs, trunk, levels, groupings, lambda _: MeanOutput(shares))


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_trunk_is_the_ensemble_of_logits(name):
    parents = [analysed(name, None, seed) for seed in (0, 1)]
    pairs = correspond(parents[0], parents)
    module = mean(pairs, pairs.reference.program.module, 0, {}, (0.25, 0.75))
    inputs = ZOO[name].example(4, seed=3)
    one, two = (outputs(parent.program.module, inputs) for parent in pairs.parents)
    expected = [0.25 * a + 0.75 * b for a, b in zip(one, two, strict=True)]
    assert distance(outputs(module, inputs), expected) < 1e-6
    both = sum(p.numel() for parent in pairs.parents for p in parent.program.module.parameters())
    assert sum(p.numel() for p in module.parameters()) <= both


def groupings_of(pairs, name):
    found = statistics(pairs, data(name))
    spaces = pairs.reference.axes.spaces
    widths, targets = {s.id: pairs.widths(s.id) for s in spaces}, {s.id: s.size for s in spaces}
    return group(spaces, found, widths, targets, "hungarian", {}, (0.5, 0.5), 0)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_and_its_permuted_copy_are_the_network_wherever_they_are_cut(name):
    pairs = with_permuted_copy(name)
    groupings = groupings_of(pairs, name)
    fused = rewrite(pairs, groupings, (0.5, 0.5))
    inputs = ZOO[name].example(4, seed=3)
    expected = outputs(pairs.reference.program.module, inputs)
    cuts = [n for n in range(len(pairs.reference.partition.levels)) if can_branch(pairs, n)]
    assert cuts
    for levels in cuts:
        module = mean(pairs, fused, levels, groupings)
        assert distance(outputs(module, inputs), expected) < 1e-5


def test_neurons_that_are_spread_over_several_are_mixed():
    pairs = with_permuted_copy("mlp")
    found = statistics(pairs, data("mlp"))
    spaces = pairs.reference.axes.spaces
    widths, targets = {s.id: pairs.widths(s.id) for s in spaces}, {s.id: s.size for s in spaces}
    soft = group(spaces, found, widths, targets, "ot", {"regularisation": 0.1}, (0.5, 0.5), 0)
    module = mean(pairs, grouped(pairs, found, "hungarian"), 1, soft)
    assert any("matrix" in name for name, _ in module.named_buffers())
    assert outputs(module, ZOO["mlp"].example(4))[0].shape == (4, 7)


def test_the_parents_are_copied_and_the_graph_copies_deeply():
    parents = [analysed("digits_net", None, seed) for seed in (0, 1)]
    pairs = correspond(parents[0], parents)
    module = side_by_side(pairs, (0.5, 0.5), "probabilities", None)
    own = {p.data_ptr() for p in module.parameters()}
    assert not own & {p.data_ptr() for parent in pairs.parents for p in parent.program.module.parameters()}
    inputs = ZOO["digits_net"].example(4)
    twin = copy.deepcopy(module)
    assert distance(outputs(twin, inputs), outputs(module, inputs)) == 0
    assert all(name.startswith("branches.") for name in module.state_dict())


def test_what_is_tied_stays_tied():
    parents = [analysed("tied_autoencoder", None, seed) for seed in (0, 1)]
    pairs = correspond(parents[0], parents)
    module = side_by_side(pairs, (0.5, 0.5), "logits", None)
    together = sum(p.numel() for parent in pairs.parents for p in parent.program.module.parameters())
    assert sum(p.numel() for p in module.parameters()) == together


@pytest.mark.parametrize("form", ["ensemble", "select", "partial"])
def test_it_is_one_onnx_with_any_batch(form, tmp_path):
    name = "digits_net"
    parents = [analysed(name, None, seed) for seed in (0, 1)]
    pairs = correspond(parents[0], parents)
    if form == "select":
        module = selected(pairs, (0.5, 0.5), "confidence", None, None, CPU)
    elif form == "ensemble":
        module = side_by_side(pairs, (0.5, 0.5), "probabilities", None)
    else:
        groupings = groupings_of(pairs, name)
        module = mean(pairs, rewrite(pairs, groupings, (0.5, 0.5)), 2, groupings)
    report = to_onnx(module, ZOO[name].example(3), tmp_path / "whole.onnx")
    assert report.max_rel < 1e-4


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("how", ["confidence", "distance", "gate", "probabilities", "logits", "partial"])
def test_what_is_added_computes_in_the_parents_precision(kind, how):
    parents = [model("mlp", seed=seed).to(kind) for seed in (0, 1)]
    inputs = data("mlp", 24).take(torch.arange(24))[0][0].to(kind)
    labels = [list("abcdefg"), list("efghijk")]
    ask = {"method": "select", "router": how}
    if how in ("probabilities", "logits"):
        ask = {"method": "ensemble", "head": how}
    if how == "partial":
        ask, labels = {"method": "zip-read", "budget": 1.9}, None
    result = fuse(parents, calibration=inputs, labels=labels, compare=False, **ask)
    found = result.module(inputs)
    assert found.dtype == kind
    assert bool(found.isfinite().all())
    assert how != "partial" or any("matrix" in name for name, _ in result.module.named_buffers())
