"""What is asked for is checked one record at a time, before any network is looked at; the plan of the fit follows."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from fxfuse.data import input_names, labels_at_hand, samples_from
from fxfuse.errors import DataError, DeviceError, MethodError
from fxfuse.naming import with_inputs_of
from fxfuse.pipeline import fuse
from fxfuse.presets import METHODS
from fxfuse.recipe import FinetuneSettings, FitSettings
from fxfuse.stages.arguments import choose_method, choose_training, describe_parents
from fxfuse.stages.clock import Clock
from fxfuse.stages.training import make_plan

IMAGES, ROWS = torch.zeros(2, 3, 8, 8), torch.zeros(2, 5)


def test_a_method_keeps_its_own_choices_unless_others_are_made():
    own = choose_method("hungarian-gradient")
    assert (own.preset, own.importance, own.form.form) == (METHODS["hungarian-gradient"], "conductance", "fused")
    changed = choose_method("hungarian-gradient", importance="magnitude", statistics="weights", budget=1.5)
    assert (changed.importance, changed.preset.statistics, changed.form.stated) == ("magnitude", "weights", 1.5)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"name": "kmaens"}, "did you mean 'kmeans'"),
        ({"importance": "conductence"}, "conductance"),
        ({"options": {"metrik": 1}}, "unknown option 'metrik'"),
        ({"statistics": "gradients"}, "'activations' or 'weights'"),
        ({"router": "gate"}, "takes no router"),
    ],
)
def test_what_a_method_does_not_know_is_refused(asked, message):
    with pytest.raises(MethodError, match=message):
        choose_method(**{"name": "kmeans", **asked})


@pytest.mark.parametrize(
    ("parents", "more", "message"),
    [
        (nn.Sequential(nn.Linear(5, 3)), {}, "parents must be a list of networks. Got a Sequential"),
        (
            [nn.Linear(5, 3).state_dict()],
            {},
            "parent 0 must be a torch.nn.Module. Got a OrderedDict; build the network",
        ),
        ([nn.Linear(5, 3)], {"target": "net"}, "target must be a torch.nn.Module. Got a str"),
        ([nn.Linear(5, 3)], {"fit": {"steps": 3}}, "fit must be a FitSettings"),
        ([nn.Linear(5, 3)], {"finetune": "3"}, "finetune must be epochs or a FinetuneSettings"),
    ],
)
def test_arguments_of_another_kind_are_refused(parents, more, message):
    with pytest.raises(MethodError, match=message):
        fuse(parents, calibration=ROWS, **more)


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        (
            (torch.zeros(4, 5), torch.zeros(4, 1)),
            r"other inputs than the calibration data: .* has \(5,\); .* has \(5,\), \(1,\)",
        ),
        (torch.zeros(4, 6), r"do not take the evaluation data .*samples of shape \(6,\); .* have \(5,\)"),
    ],
)
def test_evaluation_data_that_the_networks_do_not_take_are_refused_before_the_work(evaluation, message, monkeypatch):
    monkeypatch.setattr("fxfuse.pipeline.observe", None)
    with pytest.raises(DataError, match=message):
        fuse([nn.Linear(5, 3), nn.Linear(5, 3)], calibration=torch.randn(8, 5), evaluation=evaluation)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(4, dtype=torch.long), r"labels of shape \[2\] do not fit the output"),
        (torch.full((4, 7), 3), r"labels must lie in 0\.\.2"),
        (torch.zeros(4, 2), r"targets of shape \[2, 2\] do not fit"),
        (torch.full((4, 7, 3), torch.nan), "the target of sample 0 has NaN"),
    ],
)
def test_labels_that_do_not_fit_the_output_are_refused_before_the_work(labels, message, monkeypatch):
    monkeypatch.setattr("fxfuse.pipeline.observe", None)
    rows = torch.randn(4, 7, 5)
    with pytest.raises(DataError, match=message):
        fuse([nn.Linear(5, 3), nn.Linear(5, 3)], calibration=rows, evaluation={"x": rows, "labels": labels})


@pytest.mark.parametrize("targets", [torch.arange(28).reshape(4, 7) % 3, torch.randn(4, 7, 3)])
def test_networks_are_judged_at_every_position_and_by_targets(targets):
    rows, method = torch.randn(4, 7, 5), "hungarian"
    parents = [nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)) for _ in range(2)]
    result = fuse(parents, calibration=rows, evaluation={"x": rows, "labels": targets}, method=method)
    own = [s for s in result.scores if s.name in ("parent 0", "parent 1")]
    for parent, row in zip(parents, own, strict=True):
        with torch.no_grad():
            out = parent(rows)
        if targets.is_floating_point():
            assert (row.accuracy, row.loss) == (None, pytest.approx(float((out - targets).square().mean()), rel=1e-5))
        else:
            assert row.accuracy == pytest.approx(float((out.argmax(2) == targets).double().mean()))
            assert row.loss == pytest.approx(
                float(torch.nn.functional.cross_entropy(out.flatten(0, 1), targets.flatten()))
            )


def test_inputs_are_told_by_their_names_and_not_their_order():
    first = samples_from({"a": torch.zeros(3, 1), "b": torch.ones(3, 2)})
    other = samples_from({"b": torch.ones(3, 2), "a": torch.zeros(3, 1), "labels": torch.arange(3)})
    found = with_inputs_of(first, other)
    inputs, labels = found.take(torch.arange(2))
    assert [tuple(x.shape) for x in inputs] == [(2, 1), (2, 2)]
    assert labels.tolist() == [0, 1]
    assert input_names(found) == ("a", "b")
    assert labels_at_hand(found).tolist() == [0, 1, 2]
    assert with_inputs_of(first, first) is first


def test_an_average_of_other_widths_is_refused_with_a_word_on_what_to_take():
    parents = [nn.Sequential(nn.Linear(5, w), nn.ReLU(), nn.Linear(w, 3)) for w in (4, 6)]
    with pytest.raises(
        MethodError,
        match=r"method 'average', space '0.weight:0': averaging pairs neurons.* Got \[4, 6\]; choose a method that",
    ):
        fuse(parents, calibration=torch.randn(8, 5), method="average")


def test_parents_have_shares_that_sum_to_one_and_names():
    plain = describe_parents(2, None, None, None)
    assert (plain.names, plain.shares, plain.class_names) == (("parent 0", "parent 1"), (0.5, 0.5), ())
    assert plain.classes(0) is None
    known = describe_parents(2, ("a", "b"), (3, 1), [["cat", "dog"], ["dog", "emu", "fox"]])
    assert known.shares == (0.75, 0.25)
    assert known.class_names == ("cat", "dog", "emu", "fox")
    assert [known.classes(p) for p in (0, 1)] == [2, 3]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((0, None, None, None), "at least one parent"),
        ((2, ("a",), None, None), "names must have one entry per parent. Got 1 for 2"),
        ((2, None, (1,), None), "weights must have one entry per parent. Got 1 for 2"),
        ((2, None, (float("nan"), 1), None), "at least 0 and not all 0"),
    ],
)
def test_lists_that_do_not_suit_the_parents_are_refused(asked, message):
    with pytest.raises(MethodError, match=message):
        describe_parents(*asked)


@pytest.mark.parametrize(
    ("method", "fit", "finetune", "message"),
    [
        ("kmeans", None, FinetuneSettings(epochs=1, optimizer="SDG"), "did you mean 'SGD'"),
        ("ensemble", None, 1, "keeps parents as branches"),
        ("partial", FitSettings(repair="rescale"), 0, "keeps parents as branches"),
    ],
)
def test_training_that_cannot_be_is_refused(method, fit, finetune, message):
    with pytest.raises(MethodError, match=message):
        choose_training(choose_method(method), "logits", fit, finetune)


def test_neurons_in_a_wider_network_are_no_branches():
    assert choose_training(choose_method("partial-neurons"), "logits", None, 2).finetune.epochs == 2


def test_a_device_is_looked_for_before_the_data_are_read():
    with pytest.raises(DeviceError, match=r"'cuda:<index>'\. Got 'gpu'"):
        fuse([torch.nn.Linear(2, 2)], calibration=object(), device="gpu")


@pytest.mark.parametrize(
    ("levels", "parents", "steps", "batch"), [(1, 2, 300, 128), (4, 3, 400, 128), (9, 2, 900, 64), (1, 4, 300, 64)]
)
def test_deeper_networks_take_more_joint_steps_and_these_and_many_parents_smaller_ones(levels, parents, steps, batch):
    plan = make_plan(METHODS["hungarian-gradient"], FitSettings(), ROWS, levels, parents)
    assert (plan.joint_steps, plan.joint_batch) == (steps, batch)


def test_what_is_given_goes_before_the_plans_own():
    preset = METHODS["hungarian-gradient"]
    plan = make_plan(preset, FitSettings(steps=0, joint_steps=7, batch_size=9, augment="none"), IMAGES, 9, 2)
    assert (plan.steps, plan.joint_steps, plan.joint_batch, plan.batch_size, plan.transformations) == (0, 7, 9, 9, ())
    assert make_plan(METHODS["kmeans-linear"], FitSettings(joint_steps=7), ROWS, 9, 2).joint_steps == 0


@pytest.mark.parametrize("example", [IMAGES, (IMAGES,), {"x": IMAGES}])
def test_images_are_transformed_however_they_are_given(example):
    assert make_plan(METHODS["kmeans"], FitSettings(), example, 1, 2).transformations == ("shift", "mix")


@pytest.mark.parametrize(("front", "said"), [(torch.nn.Identity(), False), (torch.nn.Linear(4, 4), True)])
def test_a_part_that_receives_something_else_than_the_samples_is_named(front, said):
    body = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    whole = torch.nn.Sequential(OrderedDict(front=front, body=body))
    notes = fuse([whole, whole], method="average", example=torch.randn(3, 4), submodule="body").notes
    assert any("samples go straight into body" in note for note in notes) == said


def test_the_clock_adds_up_what_a_stage_takes_and_keeps_their_order(monkeypatch):
    monkeypatch.setattr("time.monotonic", iter([0.0, 1.0, 1.0, 3.0, 5.0, 9.0]).__next__)
    clock = Clock()
    for name in ("fit", "verify", "fit"):
        with clock.stage(name):
            pass
    assert list(clock.seconds.items()) == [("fit", 5.0), ("verify", 2.0)]
