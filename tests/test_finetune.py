"""Fine-tuning: the held-out loss never gets worse; same seed, same bits; it resumes; the control stands beside it."""

import pytest
import torch
from fits import CPU, StoppedError, Store, case
from torch import nn

import fxfuse
from fxfuse.errors import MethodError
from fxfuse.finetuning import BEFORE, CONTROL
from fxfuse.passes import keeping
from fxfuse.passes.finetune import FinetunePlan, finetune
from fxfuse.progress import QuietProgress
from fxfuse.recipe import FinetuneSettings, FitSettings
from fxfuse.samples import TensorSamples

PLAN = FinetunePlan(epochs=3, lr=0.01, batch_size=16, held=0.25)
QUICK = FitSettings(steps=4, joint_steps=2, batch_size=16)


def tune(made, plan=PLAN, store=None):
    return finetune(
        made.fused, made.teacher, made.samples, plan, device=CPU, seed=0, progress=QuietProgress(), store=store
    )


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "RMSprop"])
def test_the_held_out_loss_falls(optimizer):
    made = case("mlp")
    plan = FinetunePlan(epochs=3, optimizer=optimizer, lr=2e-3, options={}, batch_size=16, held=0.25)
    report = tune(made, plan)
    assert report.after < report.before
    assert 0 < report.best <= report.epochs == 3
    assert not made.fused.training


def test_a_ruinous_rate_changes_nothing_and_patience_ends_it():
    made = case()
    before = {k: v.clone() for k, v in made.fused.state_dict().items()}
    report = tune(made, FinetunePlan(epochs=9, lr=1e4, batch_size=16, patience=2))
    assert (report.best, report.epochs) == (0, 2)
    assert report.after == report.before
    assert all(torch.equal(v, before[k]) for k, v in made.fused.state_dict().items())


def test_norms_learn_their_statistics_anew():
    made = case()
    before = {k: v.clone() for k, v in made.fused.state_dict().items() if "running" in k}
    assert tune(made, FinetunePlan(epochs=20, lr=0.03, batch_size=32, held=0.25, schedule="constant")).best
    assert all(not torch.equal(v, before[k]) for k, v in made.fused.state_dict().items() if k in before)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_it_goes_on_where_it_was_stopped_bit_for_bit(monkeypatch, optimizer):
    monkeypatch.setattr(keeping, "SAVE_SECONDS", -1.0)
    plan = FinetunePlan(epochs=4, optimizer=optimizer, options={}, batch_size=16, transformations=("shift", "mix"))
    whole, store = case(), Store(stop=2)
    tune(whole, plan)
    with pytest.raises(StoppedError):
        tune(case(), plan, store)
    store.stop, again = 100, case()
    assert tune(again, plan, store).epochs == 4
    state = whole.fused.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.fused.state_dict().items())


def net(width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, width), nn.ReLU(), nn.Linear(width, 3))


def labelled():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(96, 3, 4, generator=g)
    return TensorSamples((x,), x.flatten(1)[:, :3].argmax(1), "made up")


@pytest.mark.parametrize("towards", ["ensemble", "labels"])
def test_the_control_stands_in_the_table(towards):
    tuning = FinetuneSettings(epochs=2, towards=towards)
    result = fxfuse.fuse([net(), net()], calibration=labelled(), fit=QUICK, finetune=tuning, device="cpu")
    assert [row.name for row in result.scores][-3:] == [BEFORE, CONTROL, "fused"]
    said = [note for note in result.notes if "fine-tuned on" in note]
    assert len(said) == 2
    assert ("labels" in said[0]) == (towards == "labels")
    assert "control" in said[1]


def test_labels_teach_more_than_untrained_parents():
    result = fxfuse.fuse(
        [net(), net()], calibration=labelled(), fit=QUICK, device="cpu",
        finetune=FinetuneSettings(epochs=20, towards="labels", lr=0.1),
    )  # fmt: skip
    rows = {row.name: row.accuracy for row in result.scores}
    assert rows["fused"] > rows[BEFORE] + 0.2


def test_samples_without_a_label_count_for_nothing():
    """Their inputs may be anything: no batch norm, and no other sample, sees them."""
    told = labelled()
    labels = told.labels.clone()
    labels[::4] = -100
    parents, tuning = [net(), net()], FinetuneSettings(epochs=4, towards="labels", lr=0.1)
    nets = []
    for factor in (1.0, -3.0):
        inputs = told.inputs[0].clone()
        inputs[::4] *= factor
        result = fxfuse.fuse(
            parents, calibration=(inputs, labels), method="average", finetune=tuning, device="cpu",
            fit=FitSettings(augment="none"),
        )  # fmt: skip
        nets.append(result)
    first, second = (result.state_dict() for result in nets)
    assert all(torch.allclose(first[k], second[k], atol=1e-6) for k in first)
    assert nets[0].scores[-1].accuracy > nets[0].scores[-3].accuracy


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "SDG"}, "did you mean 'SGD'"),
        ({"options": {"momentun": 0.9}}, "momentun"),
        ({"towards": "labels"}, "labelled calibration data"),
    ],
)
def test_what_cannot_be_done_is_said_before_any_work(settings, message):
    with pytest.raises(MethodError, match=message):
        fxfuse.fuse([net(), net()], calibration=labelled().inputs[0], finetune=FinetuneSettings(epochs=1, **settings))


@pytest.mark.parametrize(("method", "budget"), [("ensemble", None), ("select", None), ("partial", 1.5)])
@pytest.mark.parametrize("asked", [{"finetune": 1}, {"fit": FitSettings(repair="rescale")}])
def test_branches_are_neither_fine_tuned_nor_rescaled_and_that_is_said(method, budget, asked):
    with pytest.raises(MethodError, match="keeps parents as branches"):
        fxfuse.fuse([net(), net()], calibration=labelled(), method=method, budget=budget, device="cpu", **asked)
