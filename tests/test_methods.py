"""A method's options and needs, and what is said where they are not met."""

import pytest
import torch
from laws import data, model

from fxfuse.errors import MethodError
from fxfuse.methods import customised
from fxfuse.models_zoo.zoo import ZOO
from fxfuse.pipeline import fuse
from fxfuse.presets import find_method

X = ZOO["mlp"].example(3)


def nets(count=2):
    return [model("mlp", seed=seed) for seed in range(count)]


def test_options_go_to_the_solver_and_to_the_merge():
    preset = customised(find_method("ot"), None, {"metric": "cosine", "regularisation": 0.01})
    assert preset.options == {"metric": "cosine", "regularisation": 0.01}
    preset = customised(find_method("ties"), None, {"density": 0.5})
    assert (preset.options, preset.merge_options) == ({}, {"density": 0.5})


def test_weights_instead_of_activations():
    preset = customised(find_method("hungarian"), "weights", {})
    assert (preset.statistics, preset.search, preset.importance) == ("weights", "sweep", "magnitude")
    assert customised(find_method("rebasin"), "weights", {}).search == "ascent"
    assert not preset.needs_data
    own = fuse(nets(), method="rebasin", statistics="weights", example=X, compare=False).state_dict()
    named = fuse(nets(), method="rebasin-weights", example=X, compare=False).state_dict()
    assert all(torch.equal(own[key], named[key]) for key in own)
    fitted = fuse(nets(), method="kmeans-linear", statistics="weights", calibration=data("mlp"), compare=False)
    assert fitted.settings["statistics"] == "weights"


def test_an_option_changes_the_result():
    plain, other = (
        fuse(nets(), method="ot-weights", example=X, compare=False, options=options).state_dict()
        for options in ({}, {"metric": "euclidean", "reference": 1})
    )
    assert any(not torch.equal(plain[key], other[key]) for key in plain)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("ot", {}, "looks at activations: give it calibration data"),
        ("ties", {}, r"give that model \(base="),
        ("task-arithmetic", {}, r"give that model \(base="),
        ("kl", {}, "give the precisions"),
        ("ot-weights", {"base": True}, "uses no base model"),
        ("ot-weights", {"statistics": "wieghts"}, "'activations' or 'weights'"),
        ("average", {"statistics": "weights"}, "does not compare neurons"),
        ("kl", {"statistics": "activations"}, "does not compare neurons"),
        ("ot-weights", {"options": {"metrik": "cosine"}}, "unknown option 'metrik': did you mean 'metric'"),
        ("ot-weights", {"importance": "conductance"}, "looks at data, but this method looks at weights only"),
        ("ot-weights", {"options": {"regularisation": -1.0}}, "must be positive"),
    ],
)
def test_what_is_missing_is_said(method, options, message):
    if options.get("base"):
        options = {"base": model("mlp")}
    with pytest.raises(MethodError, match=message):
        fuse(nets(), method=method, example=X, **options)


def test_a_base_of_another_width_is_refused():
    with pytest.raises(Exception, match="base"):
        fuse(nets(), method="ties", base=model("mlp", width=9), example=X)
