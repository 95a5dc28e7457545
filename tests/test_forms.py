"""The dial from one network to all parents, by ``fuse``: its two ends, what lies between, and what is refused."""

import pytest
import torch
from laws import data, distance, model, outputs

from fxfuse.errors import MethodError
from fxfuse.forms import choose_form
from fxfuse.models_zoo.zoo import ZOO
from fxfuse.passes.costs import Budget
from fxfuse.pipeline import fuse
from fxfuse.presets import METHODS
from fxfuse.recipe import FitSettings

NAME = "digits_net"
QUICK = FitSettings(steps=3, joint_steps=2, batch_size=16)
INPUTS = ZOO[NAME].example(6, seed=9)


def made(method, parents=None, **options):
    parents = [model(NAME, seed=seed) for seed in (0, 1)] if parents is None else parents
    return fuse(parents, calibration=data(NAME), method=method, fit=QUICK, seed=2, **options)


def scores(result):
    return {row.name: row for row in result.scores}


@pytest.mark.parametrize("head", ["probabilities", "logits"])
def test_the_ensemble_is_the_mean_of_answers(head):
    one, two = (outputs(model(NAME, seed=seed), INPUTS)[0] for seed in (0, 1))
    (found,) = outputs(made("ensemble", head=head, weights=(1, 3)).module, INPUTS)
    if head == "logits":
        assert distance([found], [0.25 * one + 0.75 * two]) < 1e-5
    else:
        assert distance([found.softmax(1)], [0.25 * one.softmax(1) + 0.75 * two.softmax(1)]) < 1e-5


def test_a_budget_of_the_ensemble_gives_the_ensemble():
    ends = [made("partial", budget=2.0), made("ensemble")]
    assert distance(*(outputs(end.module, INPUTS) for end in ends)) == 0
    assert ends[0].levels == ()
    assert scores(ends[0])["fused"].parameters == scores(ends[0])["ensemble (probabilities)"].parameters


def test_a_budget_of_one_network_gives_the_fused_network():
    full, part = made("hungarian-gradient"), made("partial", budget=1.0)
    assert all(torch.equal(value, part.state_dict()[key]) for key, value in full.state_dict().items())
    model(NAME, seed=5).load_state_dict(part.state_dict(), strict=True)


def test_between_them_the_trunk_is_fitted_and_the_branches_are_there():
    result = made("partial", budget="1.5x")
    one = sum(p.numel() for p in model(NAME).parameters())
    size = sum(p.numel() for p in result.module.parameters())
    assert one < size <= 1.5 * one
    assert 0 < len(result.levels) < 4
    assert result.settings["budget"] == "1.5x"
    assert any("levels are fused and the others are the parents' own" in note for note in result.notes)
    own = set(model(NAME).state_dict())
    assert {key for key in result.state_dict() if not key.startswith("branches.")} < own
    result.analysis.program.module.graph.lint()


def test_a_choice_among_copies_is_the_parent():
    own = model(NAME)
    assert distance(outputs(made("select", [own, model(NAME)]).module, INPUTS), outputs(own, INPUTS)) < 1e-6


def test_neurons_that_are_alike_are_not_kept_apart():
    own = model(NAME)
    same = made("partial-neurons", [own, model(NAME)], budget=1.0)
    assert distance(outputs(same.module, INPUTS), outputs(own, INPUTS)) < 1e-4
    wide = made("partial-neurons", budget=1.5)
    one = sum(p.numel() for p in own.parameters())
    assert one < sum(p.numel() for p in wide.module.parameters()) <= 1.5 * one
    assert "average" in scores(wide)


@pytest.mark.parametrize("method", ["partial", "ensemble", "select"])
def test_a_parent_without_a_share_has_no_branch(method):
    first = model(NAME)
    result = made(method, [first, model(NAME, seed=1)], weights=(1.0, 0.0), compare=False)
    assert not any(key.startswith("branches.1.") for key in result.state_dict())
    assert distance(outputs(result.module, INPUTS), outputs(first, INPUTS)) < 1e-4


def test_forms():
    assert choose_form(METHODS["average"], "average", None, None).budget is None
    assert choose_form(METHODS["average"], "average", 1.2, None).budget == Budget(1.2)
    assert choose_form(METHODS["partial"], "partial", None, None).budget == Budget(1.5)
    assert choose_form(METHODS["select"], "select", None, None).router == "confidence"


@pytest.mark.parametrize(
    ("method", "budget", "router", "message"),
    [
        ("ensemble", 2.0, None, "method 'ensemble' fuses nothing, so it takes no budget"),
        ("select", "1x", None, "method 'select' fuses nothing"),
        ("partial", None, "gate", "method 'partial' chooses no parent, so it takes no router"),
        ("select", None, "gaet", "unknown router 'gaet'"),
        ("partial", "lots", None, "a budget must be"),
    ],
)
def test_refused(method, budget, router, message):
    with pytest.raises(MethodError, match=message):
        choose_form(METHODS[method], method, budget, router)


def test_too_small_a_budget():
    for method in ("partial", "partial-neurons"):
        with pytest.raises(MethodError, match="below the smallest possible network"):
            made(method, budget=0.9)
    with pytest.raises(MethodError, match=r"select.*no output of the parents decides between classes"):
        fuse([Regressor(), Regressor()], calibration=torch.randn(8, 3), method="select")


class Regressor(torch.nn.Linear):
    def __init__(self):
        super().__init__(3, 4)

    def forward(self, x):
        return super().forward(x).sum(1)
