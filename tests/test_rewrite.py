"""Fused weights are ``sum_p M W_p U``; what is not fused is the target's own."""

import pytest
import torch
from laws import analysed, data, grouped, statistics
from torch import nn

from fxfuse.models_zoo.randomise import randomise
from fxfuse.passes.correspond import correspond
from fxfuse.passes.rewrite import fused_state, mask_note, rewrite
from fxfuse.pipeline import analyse
from fxfuse.types import Grouping


def test_the_formula_by_hand():
    parents = [analysed("mlp", seed=seed) for seed in (0, 1)]
    pairs = correspond(parents[0], parents)
    generator = torch.Generator().manual_seed(0)
    groupings = {
        s.id: Grouping(
            s.id,
            tuple(torch.rand(s.size, s.size, generator=generator).double() for _ in parents),
            tuple(torch.rand(s.size, s.size, generator=generator).double() for _ in parents),
        )
        for s in parents[0].axes.spaces
    }
    weights = (0.3, 0.7)
    state = fused_state(pairs, groupings, weights)
    own = [p.program.module.state_dict() for p in parents]
    names = [n for n in state if n.endswith("weight")]
    first, middle, last = names
    a, b = groupings[0], groupings[1]
    expected = {
        first: sum(a.merge[p].float() @ own[p][first] for p in (0, 1)),
        middle: sum(b.merge[p].float() @ own[p][middle] @ a.unmerge[p].float() for p in (0, 1)),
        last: sum(weights[p] * own[p][last] @ b.unmerge[p].float() for p in (0, 1)),
    }
    for name, value in expected.items():
        assert torch.allclose(state[name], value, rtol=1e-4, atol=1e-5), name


class Odd(nn.Module):
    """A counter, an index, a complex parameter, a half-precision layer's worth of doubles."""

    def __init__(self):
        super().__init__()
        self.fc, self.norm, self.out = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.register_buffer("index", torch.tensor([2, 0, 1]))
        self.turn = nn.Parameter(torch.randn(6, dtype=torch.complex64))

    def forward(self, x):
        h = self.norm(torch.relu(self.fc(x)))
        return self.out((h * self.turn).real)[:, self.index]


def odd(seed):
    module = randomise(Odd(), seed)
    with torch.no_grad():
        module.turn.copy_(torch.randn(6, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed)))
    module.norm.num_batches_tracked.fill_(10 * (seed + 1))
    return analyse(module, torch.randn(3, 4), name=f"odd {seed}")


def test_counters_are_the_targets_and_numbers_are_fused():
    parents = [odd(0), odd(1)]
    pairs = correspond(parents[0], parents)
    state = grouped(pairs, {}, "average").state_dict()
    own = [p.program.module.state_dict() for p in parents]
    assert int(state["norm.num_batches_tracked"]) == 10
    assert torch.equal(state["index"], own[0]["index"])
    assert torch.allclose(state["turn"], (own[0]["turn"] + own[1]["turn"]) / 2)
    assert torch.allclose(state["norm.running_var"], (own[0]["norm.running_var"] + own[1]["norm.running_var"]) / 2)


@pytest.mark.parametrize("name", ["tied_autoencoder", "shared_layers"])
def test_tied_parameters_stay_tied(name):
    parents = [analysed(name, seed=seed) for seed in (0, 1)]
    pairs = correspond(parents[0], parents)
    fused = grouped(pairs, statistics(pairs, data(name, 16)), "hungarian")
    tied = len(dict(fused.named_parameters(remove_duplicate=False))) - len(dict(fused.named_parameters()))
    module = parents[0].program.module
    assert tied == len(dict(module.named_parameters(remove_duplicate=False))) - len(dict(module.named_parameters()))


def test_the_result_is_a_copy_in_evaluation_mode():
    parents = [analysed("digits_net", seed=seed) for seed in (0, 1)]
    pairs = correspond(parents[0], parents)
    before = {k: v.clone() for k, v in parents[0].program.module.state_dict().items()}
    fused = grouped(pairs, {}, "average")
    assert not fused.training
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.zero_()
    assert all(torch.equal(v, before[k]) for k, v in parents[0].program.module.state_dict().items())


class Masked(nn.Module):
    """A layer whose weights a saved mask lets through."""

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        self.register_buffer("mask", mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(nn.functional.linear(x, self.first.weight * self.mask)))


@pytest.mark.parametrize("other", [0, 1])
def test_masks_that_differ_between_the_parents_are_said(other):
    mask = torch.eye(6, 4)
    parents = []
    for seed, value in enumerate((mask, mask.flip(0) if other else mask)):
        parents.append(analyse(randomise(Masked(value), seed), torch.randn(2, 4)))
        parents[-1].program.module.mask.copy_(value)
    pairs = correspond(parents[0], parents)
    same = {s.id: Grouping(s.id, (torch.eye(s.size),) * 2, (torch.eye(s.size),) * 2) for s in parents[0].axes.spaces}
    halves = {i: Grouping(i, tuple(m / 2 for m in g.merge), g.unmerge) for i, g in same.items()}
    note = mask_note(pairs, rewrite(pairs, halves, (0.5, 0.5)))
    assert (note is not None and note.startswith("mask holds zeros and ones in every parent")) == bool(other)
