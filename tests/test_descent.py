"""Learning rates fall as they should, a step goes down, and optimisers are found by name."""

import math

import pytest
import torch

from fxfuse.errors import MethodError
from fxfuse.passes.descent import adam, descend, falling, make_optimizer


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", (1, 1, 1)), ("linear", (1, 0.75, 0)), ("cosine", (1, 0.5 + 0.5 * math.cos(math.pi / 4), 0))],
)
def test_the_rate_falls_from_one_to_zero(schedule, expected):
    assert [falling(schedule, part) for part in (0, 0.25, 1)] == pytest.approx(expected)


def test_a_step_goes_down_at_its_own_rate():
    x = torch.nn.Parameter(torch.tensor(2.0))
    optimizer = make_optimizer("SGD", [x], 9.0, {})
    descend(optimizer, x * x, 0.25)
    assert x.item() == 1.0
    descend(optimizer, x * x, 0.25)
    assert x.item() == 0.5


def test_adam_is_fused_where_it_can_be():
    assert adam([torch.nn.Parameter(torch.ones(1))], 0.1).defaults["fused"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("SDG", {}, "did you mean 'SGD'"),
        ("LBFGS", {}, "unknown optimizer"),
        ("Muon", {}, "unknown optimizer"),
        ("SGD", {"momentun": 0.9}, "does not take lr=0.1, {'momentun': 0.9}"),
        ("SGD", {"momentum": -1}, "does not take"),
    ],
)
def test_what_cannot_be_made_is_refused(name, options, message):
    with pytest.raises(MethodError, match=message):
        make_optimizer(name, [torch.zeros(1, requires_grad=True)], 0.1, options)
