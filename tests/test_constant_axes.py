"""What a constant allows: the permutations that leave its values as they are, and no others."""

import pytest
import torch
from axis_nets import Net, found, tensor
from torch import nn

from fxfuse.models_zoo.randomise import randomise
from fxfuse.passes.axes import axes
from fxfuse.passes.axis_law import permutation_error
from fxfuse.passes.constant_axes import constant_dims
from fxfuse.passes.trace import trace

EYE = torch.eye(4)
CASES = {
    "one number": (torch.zeros(3, 4), "ab"),
    "one number in a square": (torch.full((4, 4), 2.0), "ab"),
    "equal rows": (torch.arange(4.0).expand(3, 4), "a-"),
    "in order": (torch.arange(4), "-"),
    "identity": (EYE, "aa"),
    "identity and a number": (3 * EYE - 1, "aa"),
    "identities of a batch": (torch.stack([EYE, 2 * EYE]), "-aa"),
    "apart from one another": (torch.stack([EYE, EYE]).permute(1, 0, 2), "aba"),
    "triangle": (torch.ones(4, 4).tril(), "--"),
    "diagonal of different numbers": (torch.diag(torch.arange(4.0)), "--"),
    "no identity": (torch.eye(3, 4), "--"),
    "mask": (torch.zeros(2, 5, dtype=torch.bool), "ab"),
    "not a number": (torch.full((3,), float("nan")), "-"),
    "of size one": (torch.ones(1, 2), ".a"),
    "empty": (torch.zeros(0, 2), "--"),
}


@pytest.mark.parametrize("name", CASES)
def test_dimensions_are_free_where_the_values_allow_it(name: str) -> None:
    value, expected = CASES[name]
    letters: dict[object, str] = {}
    seen = ""
    for dim in constant_dims(value):
        if not dim:
            seen += "."
        elif dim[0].var.pinned:
            seen += "-"
        else:
            seen += letters.setdefault(dim[0].var, "abc"[len(letters)])
    assert seen == expected


def test_values_that_are_not_there_tell_nothing() -> None:
    assert constant_dims(torch.zeros(3, device="meta"))[0][0].var.pinned


class Bias(nn.Module):
    """A packed projection whose keys have a bias that is no parameter, as vision transformers write it."""

    def __init__(self, bias: torch.Tensor) -> None:
        super().__init__()
        self.a, self.b, self.w = nn.Linear(5, 8), nn.Linear(8, 3), nn.Parameter(torch.zeros(24, 8))
        self.q, self.v = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.zeros(8))
        self.register_buffer("k", bias, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        packed = nn.functional.linear(h, self.w, torch.cat([self.q, self.k, self.v]))
        q, k, v = packed.unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return self.b(h + ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("bias", "expected"), [(torch.zeros(8), "2 4 4"), (torch.arange(8.0), "4")])
def test_zeros_pin_nothing_and_other_constants_do(bias: torch.Tensor, expected: str) -> None:
    program = trace(randomise(Bias(bias), seed=1), tensor(6, 5))
    result = axes(program)
    assert max(permutation_error(program, result, seed) for seed in range(3)) < 1e-10
    assert found(result) == expected


def test_an_identity_lets_both_sides_go_together() -> None:
    net = Net(
        lambda n, x: n.b(nn.functional.linear(n.a(x).relu(), n.w + torch.eye(8))),
        a=nn.Linear(5, 8), w=(8, 8), b=nn.Linear(8, 3),
    )  # fmt: skip
    program = trace(randomise(net, seed=1), tensor(5))
    result = axes(program)
    assert max(permutation_error(program, result, seed) for seed in range(3)) < 1e-10
    assert found(result) == "8"
