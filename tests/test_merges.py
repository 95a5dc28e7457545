"""Ways to make one tensor of several: against their formulas, and their limits."""

import pytest
import torch
from laws import analysed, model

from fxfuse.errors import MethodError
from fxfuse.passes.correspond import correspond
from fxfuse.passes.merges import Merge, merge_options, reference_states
from fxfuse.passes.solvers.average import identity
from fxfuse.pipeline import fuse

SHARES = (0.5, 0.3, 0.2)


def family(count=3):
    parents = [analysed("mlp", seed=seed) for seed in range(count)]
    pairs = correspond(parents[0], parents)
    shares = SHARES[:count] if count > 1 else (1.0,)
    groupings = {s.id: identity(s.id, s.size, shares) for s in pairs.reference.axes.spaces}
    return pairs, groupings


def test_precision_is_the_weighted_mean_entry_by_entry():
    pairs, groupings = family()
    random = torch.Generator().manual_seed(0)
    states = reference_states(pairs)
    precisions = tuple({n: torch.rand(x.shape, generator=random) + 0.1 for n, x in s.items()} for s in states)
    fused = Merge("precision", precisions=precisions).apply(pairs, groupings, SHARES).state_dict()
    for name in states[0]:
        above = sum(w * p[name] * s[name] for w, p, s in zip(SHARES, precisions, states, strict=True))
        below = sum(w * p[name] for w, p in zip(SHARES, precisions, strict=True))
        torch.testing.assert_close(fused[name], above / below, rtol=1e-5, atol=1e-6)


def test_equal_precisions_are_the_mean():
    pairs, groupings = family()
    ones = tuple({n: torch.full_like(x, 7.0) for n, x in s.items()} for s in reference_states(pairs))
    by_precision = Merge("precision", precisions=ones).apply(pairs, groupings, SHARES).state_dict()
    for name, x in Merge().apply(pairs, groupings, SHARES).state_dict().items():
        torch.testing.assert_close(by_precision[name], x, rtol=1e-5, atol=1e-6)


def test_task_arithmetic():
    pairs, groupings = family()
    states = reference_states(pairs)
    base = {name: torch.full_like(x, 0.25) for name, x in states[0].items()}
    fused = Merge("task", {"scale": 0.7}, base).apply(pairs, groupings, SHARES).state_dict()
    for name in base:
        change = sum(3 * w * (s[name] - base[name]) for w, s in zip(SHARES, states, strict=True))
        torch.testing.assert_close(fused[name], base[name] + 0.7 * change, rtol=1e-5, atol=1e-6)


def test_ties_cuts_elects_and_averages_those_that_agree():
    pairs, groupings = family()
    states = reference_states(pairs)
    base = {name: torch.zeros_like(x) for name, x in states[0].items()}
    fused = Merge("ties", {"density": 0.4, "scale": 1.5}, base).apply(pairs, groupings, SHARES).state_dict()
    cut = []
    for state in states:
        bound = torch.cat([x.abs().flatten() for x in state.values()])
        bound = bound.sort(descending=True).values[round(0.4 * len(bound)) - 1]
        cut.append({name: torch.where(x.abs() >= bound, x, 0.0) for name, x in state.items()})
    name = next(iter(base))
    for place in range(200):
        values = [c[name].flatten()[place] for c in cut]
        total = sum(w * v for w, v in zip(SHARES, values, strict=True))
        agree = [(w, v) for w, v in zip(SHARES, values, strict=True) if v * total > 0]
        expected = sum(w * v for w, v in agree) / sum(w for w, _ in agree) if agree else 0.0
        assert float(fused[name].flatten()[place]) == pytest.approx(1.5 * float(expected), rel=1e-5, abs=1e-7)


def test_ties_of_everything_that_agrees_is_the_mean():
    pairs, groupings = family(1)
    base = {name: x * 0.5 for name, x in reference_states(pairs)[0].items()}
    fused = Merge("ties", {"density": 1.0}, base).apply(pairs, groupings, (1.0,)).state_dict()
    for name, x in reference_states(pairs)[0].items():
        torch.testing.assert_close(fused[name], x, rtol=1e-5, atol=1e-7)


def test_running_statistics_are_averaged_not_extrapolated():
    nets = [model("digits_net", seed=seed) for seed in range(3)]
    x = torch.randn(3, 1, 8, 8)
    result = fuse(nets[1:], method="task-arithmetic", base=nets[0], example=x, options={"scale": 30.0}, compare=False)
    for name, value in result.state_dict().items():
        if name.endswith("running_var"):
            mean = (nets[1].state_dict()[name] + nets[2].state_dict()[name]) / 2
            torch.testing.assert_close(value, mean)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("ties", {"densty": 0.1}, "no option 'densty'; did you mean 'density'"),
        ("mean", {"scale": 1.0}, "it has none"),
        ("ties", {"density": 1.5}, "at most 1"),
        ("task", {"scale": 0}, "positive"),
        ("task", {"scale": "big"}, "positive"),
    ],
)
def test_bad_options_are_named(kind, options, message):
    with pytest.raises(MethodError, match=message):
        merge_options(kind, options)


def test_what_is_missing_is_said():
    pairs, groupings = family(2)
    with pytest.raises(MethodError, match="give the base model"):
        Merge("ties").apply(pairs, groupings, (0.5, 0.5))
    with pytest.raises(MethodError, match="needs a precision for every parameter"):
        Merge("precision").apply(pairs, groupings, (0.5, 0.5))
    with pytest.raises(MethodError, match="base model must have the parents' shapes"):
        Merge("task", base={}).apply(pairs, groupings, (0.5, 0.5))


@pytest.mark.parametrize("method", ["task-arithmetic", "ties"])
def test_a_parent_of_share_0_does_not_count(method):
    base, *nets = (model("mlp", seed=seed) for seed in range(4))
    ask = {"method": method, "base": base, "example": torch.randn(3, 20), "compare": False}
    with_it = fuse(nets, weights=(1, 1, 0), **ask).state_dict()
    without = fuse(nets[:2], **ask).state_dict()
    for name, x in without.items():
        torch.testing.assert_close(with_it[name], x, rtol=0, atol=1e-6)
