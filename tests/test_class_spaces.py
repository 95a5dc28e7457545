"""Classes as neuron spaces, and fusions of parents that know different ones."""

import json

import onnx
import pytest
import torch
from laws import data, distance, model, outputs
from run_cases import recipe, workspace
from safetensors import safe_open

from fxfuse.errors import DataError, MethodError
from fxfuse.label_space import label_space
from fxfuse.models_zoo.convnets import digits_net
from fxfuse.models_zoo.mlp import mlp
from fxfuse.models_zoo.randomise import randomise
from fxfuse.models_zoo.zoo import ZOO
from fxfuse.numbering import in_label_space
from fxfuse.passes.class_spaces import class_counts, class_spaces, with_classes
from fxfuse.pipeline import analyse, fuse
from fxfuse.presets import METHODS
from fxfuse.recipe import FitSettings
from fxfuse.run import run
from fxfuse.samples import TensorSamples

QUICK = FitSettings(steps=3, joint_steps=2, batch_size=16)
FIXED = {"tied_autoencoder", "pixel_shuffle", "language_model"}


@pytest.mark.parametrize("name", sorted(set(ZOO) - FIXED))
def test_every_head_can_have_other_classes(name):
    found = analyse(model(name), ZOO[name].example(3), name=name)
    count = class_counts(found.program)[0]
    free = analyse(model(name), ZOO[name].example(3), name=name, classes=count)
    (space,) = class_spaces(free, count)
    assert free.axes.spaces[space].size == count
    union = label_space([list(range(count)), [0, count, count + 1]], "ab", (0.5, 0.5))
    wider = with_classes(free, union, count)
    out = outputs(wider.program.module, ZOO[name].example(2))
    assert count + 2 in out[0].shape
    assert [x.shape for x in out[1:]] == [x.shape for x in outputs(found.program.module, ZOO[name].example(2))[1:]]


@pytest.mark.parametrize("name", sorted(FIXED))
def test_what_stands_behind_a_head_may_fix_its_classes(name):
    found = analyse(model(name), ZOO[name].example(3), name=name)
    count = class_counts(found.program)[0]
    with pytest.raises(MethodError, match="cannot be put into another order"):
        class_spaces(analyse(model(name), ZOO[name].example(3), name=name, classes=count), count)


@pytest.mark.parametrize("name", ["digits_net", "vit", "unet", "two_outputs", "lstm"])
def test_the_same_network_with_its_classes_in_another_order_is_itself(name):
    own = model(name)
    twin = model(name)
    count = class_counts(analyse(own, ZOO[name].example(3)).program)[0]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(3))
    head = twin.get_submodule("fc" if name == "digits_net" else "head")
    with torch.no_grad():
        head.weight.copy_(head.weight[order])
        head.bias.copy_(head.bias[order])
    maps = [list(range(count)), order.tolist()]
    result = fuse([own, twin], calibration=data(name), labels=maps, method="rebasin", fit=QUICK)
    inputs = ZOO[name].example(5, seed=9)
    assert distance(outputs(result.module, inputs), outputs(own, inputs)) < 1e-4


KINDS = {
    (preset.solver, preset.fit, preset.statistics): name
    for name, preset in reversed(METHODS.items())
    if preset.form == "fused" and not preset.needs_base and not preset.budget
}


@pytest.mark.parametrize("method", KINDS.values())
def test_a_parent_cut_in_two_by_its_classes_is_made_whole(method):
    whole = randomise(digits_net(), 0).eval()
    maps = [[0, 1, 2, 3, 4, 5], [9, 8, 7, 6, 5]]
    parents = [_part(whole, own) for own in maps]
    result = fuse(parents, calibration=data("digits_net"), labels=maps, method=method, fit=QUICK, budget=1.0)
    assert result.classes == tuple("0123456789")
    digits_net().load_state_dict(result.state_dict(), strict=True)
    inputs = ZOO["digits_net"].example(6, seed=4)
    if method in ("average", "rebasin", "ot", "hungarian", "kmeans", "zip"):
        assert distance(outputs(result.module, inputs), outputs(whole, inputs)) < 1e-3
    assert {row.name for row in result.scores} >= {"fused", "ensemble (probabilities)"}


@pytest.mark.parametrize(("method", "budget"), [("partial", 1.5), ("ensemble", None), ("select", None)])
def test_branches_answer_over_the_union(method, budget):
    whole = randomise(digits_net(), 0).eval()
    maps = [[0, 1, 2, 3, 4, 5], [9, 8, 7, 6, 5]]
    parents = [_part(whole, own) for own in maps]
    result = fuse(parents, calibration=data("digits_net"), labels=maps, method=method, fit=QUICK, budget=budget)
    inputs = ZOO["digits_net"].example(6, seed=4)
    (found,) = outputs(result.module, inputs)
    assert found.shape == (6, 10)
    together, fused = (next(s for s in result.scores if s.name == n) for n in ("ensemble (probabilities)", "fused"))
    if method == "ensemble":
        assert fused.agreement == together.agreement == 1
    assert fused.parameters <= together.parameters


def _part(whole, classes):
    part = digits_net(classes=len(classes))
    state = whole.state_dict()
    for key in ("fc.weight", "fc.bias"):
        state[key] = state[key][classes]
    part.load_state_dict(state)
    return part.eval()


def test_three_parents_a_target_and_a_width():
    maps = [["a", "b"], ["b", "c", "d"], ["d", "e"]]
    parents = [randomise(mlp((6, 8, len(own))), seed).eval() for seed, own in enumerate(maps)]
    inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 5
    wide = fuse(parents, calibration=(inputs, labels), labels=maps, target=2.0, head="labels", fit=QUICK)
    mlp((6, 16, 5)).load_state_dict(wide.state_dict(), strict=True)
    given = fuse(parents, calibration=inputs, labels=maps, target=mlp((6, 12, 5)), head="logits", fit=QUICK)
    mlp((6, 12, 5)).load_state_dict(given.state_dict(), strict=True)
    assert all(0 <= row.accuracy <= 1 for row in wide.scores)
    assert [row.loss is None for row in wide.scores[:3]] == [True] * 3
    with pytest.raises(MethodError, match="label map of target has 5 entries, but the network has 4"):
        fuse(parents, calibration=inputs, labels=maps, target=mlp((6, 12, 4)))


def test_bad_maps():
    parents = [mlp((6, 8, 3)), mlp((6, 8, 4))]
    inputs = torch.randn(20, 6)
    with pytest.raises(MethodError, match=r"has 3 outputs and parent 1 has 4.*give label maps"):
        fuse(parents, calibration=inputs)
    with pytest.raises(MethodError, match="label map of parent 1 has 5 entries, but the network has 4"):
        fuse(parents, calibration=inputs, labels=[[0, 1, 2], [0, 1, 2, 3, 4]])


class Named(TensorSamples):
    classes = ("fox", "cat")


def test_data_with_names_is_renumbered_by_them():
    samples = Named((torch.zeros(4, 1),), torch.tensor([0, 1, 1, 0]))
    assert in_label_space(samples, ("cat", "dog", "fox")).take(torch.arange(4))[1].tolist() == [2, 0, 0, 2]
    assert in_label_space(samples, ("0", "1")) is samples
    with pytest.raises(DataError, match="has the class 'fox', which no parent's label map names"):
        in_label_space(samples, ("cat", "dog"))


def test_a_run_carries_the_names_of_the_classes(tmp_path):
    place = workspace(tmp_path)
    code, maps = f"{place}/net.py:Net", (["cat", "dog", "owl"], ["owl", "fox", "dog"])
    files = [str(place / f"{name}.safetensors") for name in "ab"]
    parents = [{"source": code, "weights": w, "labels": own} for w, own in zip(files, maps, strict=True)]
    outcome = run(recipe(place, "named", parents=parents, onnx=True, evaluation=None))
    names = ["cat", "dog", "owl", "fox"]
    account = json.loads((outcome.folder / "manifest.json").read_text())
    assert account["classes"] == names
    assert [parent["labels"] for parent in account["parents"]] == [list(own) for own in maps]
    properties = {p.key: p.value for p in onnx.load(outcome.folder / "model.onnx").metadata_props}
    assert json.loads(properties["fxfuse.classes"]) == names
    with safe_open(outcome.folder / "model.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["fxfuse.classes"]) == names
    assert "cat, dog, owl, fox" in (outcome.folder / "report.md").read_text()
