"""Levels in order: no level ends worse, values are freed, finished levels are not fitted again."""

import pytest
import torch
from fits import CPU, PLAN, case

from fxfuse.passes.fit import _front_bytes, _last_uses, _passes, fit_levels, make_chunks
from fxfuse.passes.fitting import FitPlan
from fxfuse.passes.observe import placed
from fxfuse.progress import QuietProgress


def fit(made, plan=PLAN, store=None):
    return fit_levels(
        made.fused, made.teacher, made.samples, plan, device=CPU, seed=0, progress=QuietProgress(), store=store
    )


@pytest.mark.parametrize("kind", ["none", "linear", "gradient"])
@pytest.mark.parametrize("name", ["digits_net", "packed_qkv", "lstm", "two_outputs"])
def test_no_level_ends_worse(name, kind):
    made = case(name, count=64)
    reports = fit(made, FitPlan(levels=kind, steps=8, batch_size=16, held=0.25))
    levels = made.teacher.pairs.reference.partition.levels
    assert [r.level for r in reports] == [level.name for level in levels]
    for level, report in zip(levels, reports, strict=True):
        assert report.before is not None
        assert report.after is not None
        assert report.after <= report.before
        if level.space is not None:
            space = made.teacher.pairs.reference.axes.spaces[level.space]
            assert (report.space, report.width) == (space.name, space.size)
    assert kind == "none" or any(report.fit != "none" for report in reports)


class Memory:
    """A store that remembers, and what it was asked to save."""

    def __init__(self):
        self.kept, self.saved = {}, []

    def save(self, key, tensors, meta=None):
        self.saved.append(key)
        self.kept[key] = ({k: v.detach().clone() for k, v in tensors.items()}, dict(meta or {}))

    def load(self, key):
        return self.kept.get(key)


def test_finished_levels_are_taken_from_the_store():
    plan, store = FitPlan(steps=8, batch_size=16, held=0.25), Memory()
    whole = case()
    expected = fit(whole, plan, store)
    assert len(store.saved) == len(expected)
    for key in list(store.kept)[2:]:  # as if it had been interrupted behind the second level
        del store.kept[key]
    store.saved.clear()
    again = case()
    reports = fit(again, plan, store)
    assert len(store.saved) == len(expected) - 2
    assert [(r.before, r.after, r.fit) for r in reports] == [(r.before, r.after, r.fit) for r in expected]
    state = whole.fused.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.fused.state_dict().items())


def test_batch_norms_count_as_they_did():
    made = case()
    before = {k: v.clone() for k, v in made.fused.state_dict().items() if "num_batches" in k}
    fit(made, FitPlan(levels="none", batch_size=16))
    assert before
    assert all(torch.equal(made.fused.state_dict()[k], v) for k, v in before.items())
    assert not made.fused.training


def chunks(plan, count=64):
    made = case(count=count)
    parents = [placed(p.program.module, CPU) for p in made.teacher.pairs.parents]
    return make_chunks(made.fused, parents, made.teacher, made.samples, plan, CPU, 0)


def test_chunks_hold_every_sample_once_and_some_back():
    made = chunks(FitPlan(batch_size=16, held=0.25))
    sizes = [(len(next(iter(c.fused.values()))), c.held) for c in made]
    assert sizes == [(16, True), (16, False), (16, False), (16, False)]


def test_the_budget_bounds_the_chunks():
    assert len(chunks(FitPlan(batch_size=4, held=0.25, budget=1))) == 3


def test_the_front_holds_the_inputs_too():
    made = case("otfusion_mlp", count=16)  # 784-24-12-6-10: the widest point is the first level
    assert _front_bytes(made.teacher, 5, 2) == 4 * 5 * (784 + 24) * (2 + 2)


def test_transformed_copies_follow_the_samples_themselves():
    plan = FitPlan(batch_size=8, copies=3, transformations=("shift", "mix"))
    made = list(_passes(torch.arange(16), plan, torch.Generator().manual_seed(0), 100))
    assert [kinds for _, kinds in made] == [(), (), ("shift",), ("shift",), ("shift",), ("shift",)]
    for k in range(0, 6, 2):
        assert torch.cat([made[k][0], made[k + 1][0]]).sort().values.tolist() == list(range(16))


def test_a_value_lives_until_its_last_reader():
    levels = case("unet", count=16).teacher.pairs.reference.partition.levels
    uses = _last_uses(levels)
    for level in levels:
        assert all(uses[name] >= level.index for name in level.inputs)
