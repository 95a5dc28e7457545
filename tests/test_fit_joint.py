"""All levels together: the answer on held-out samples never gets worse; the same seed, the same bits; it resumes."""

import pytest
import torch
from fits import CPU, StoppedError, Store, case

from fxfuse.passes import fit_joint as fit_joint_module
from fxfuse.passes import keeping
from fxfuse.passes.fit_joint import FUSED, fit_joint
from fxfuse.passes.fitting import FitPlan
from fxfuse.passes.teacher import Teacher
from fxfuse.progress import QuietProgress
from fxfuse.stages.training import joint_note

PLAN = FitPlan(joint_steps=24, batch_size=16, held=0.25)


def fit(made, plan=PLAN, store=None):
    return fit_joint(
        made.fused, made.teacher, made.samples, plan, device=CPU, seed=0, progress=QuietProgress(), store=store
    )


@pytest.mark.parametrize(
    ("name", "head"), [("digits_net", "probabilities"), ("mlp", "logits"), ("two_outputs", "logits")]
)
def test_the_answer_gets_better(name, head):
    made = case(name, head, 64)
    report = fit(made)
    assert report is not None
    assert report.steps == 24
    assert report.answer_after < report.answer_before


def test_a_ruinous_rate_changes_nothing():
    made = case()
    before = {k: v.clone() for k, v in made.fused.state_dict().items()}
    report = fit(made, FitPlan(joint_steps=8, batch_size=16, lr=1e4))
    assert report is not None
    assert report.answer_after <= report.answer_before
    if report.answer_after == report.answer_before:
        assert all(torch.equal(v, before[k]) for k, v in made.fused.state_dict().items())


def test_an_error_that_is_no_number_is_not_trained_on_and_said(monkeypatch):
    made = case()
    before = {k: v.clone() for k, v in made.fused.state_dict().items()}
    monkeypatch.setattr(Teacher, "answer_loss", lambda _, value, target: (value * float("nan")).sum() + target.sum())
    report = fit(made)
    assert report is not None
    assert report.steps == 0
    assert "no number" in joint_note(report)
    assert all(torch.equal(v, before[k]) for k, v in made.fused.state_dict().items())


def test_no_steps():
    assert fit(case(), FitPlan(joint_steps=0)) is None


def test_the_same_seed_gives_the_same_bits():
    states = []
    for _ in range(2):
        made = case()
        fit(made, FitPlan(joint_steps=8, batch_size=16, transformations=("shift", "mix")))
        states.append(made.fused.state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_it_goes_on_where_it_was_stopped_bit_for_bit(monkeypatch):
    monkeypatch.setattr(keeping, "SAVE_SECONDS", -1.0)
    plan = FitPlan(joint_steps=40, batch_size=16, transformations=("shift", "mix"))
    whole = case()
    fit(whole, plan)
    store, again = Store(stop=2), case()
    with pytest.raises(StoppedError):
        fit(again, plan, store)
    store.stop, once_more = 100, case()
    report = fit(once_more, plan, store)
    assert report is not None
    state = whole.fused.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in once_more.fused.state_dict().items())


@pytest.mark.parametrize("better", ["start", "fused"])
def test_it_begins_with_whichever_does_better_on_trial(better):
    made = case("mlp")
    good = {k: v.clone() for k, v in made.fused.state_dict().items()}
    bad = {k: v + 3 * torch.randn(v.shape, generator=torch.Generator().manual_seed(1)) for k, v in good.items()}
    if better == "start":
        made.fused.load_state_dict(bad)
    report = fit_joint(
        made.fused, made.teacher, made.samples, PLAN, device=CPU, seed=0, progress=QuietProgress(),
        starts={"a parent": good if better == "start" else bad},
    )  # fmt: skip
    assert report is not None
    assert report.start == ("a parent" if better == "start" else FUSED)
    assert report.starts[report.start] == min(report.starts.values())
    assert report.steps == PLAN.joint_steps


def test_a_time_limit_shortens_the_schedule(monkeypatch):
    """Every step takes a second here, and eight are allowed: the learning rate falls to zero over eight."""
    rates = []
    now = [0.0]
    descend = fit_joint_module.descend

    def slow(optimizer, loss, lr):
        rates.append(lr)
        now[0] += 1.0
        descend(optimizer, loss, lr)

    monkeypatch.setattr(fit_joint_module, "descend", slow)
    monkeypatch.setattr(fit_joint_module.time, "monotonic", lambda: now[0])
    report = fit(case(), FitPlan(joint_steps=400, batch_size=16, max_seconds=8.0))
    assert report is not None
    assert report.steps == 8
    assert rates[-1] < 0.1 * max(rates)
