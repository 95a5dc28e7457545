"""Checks of the data are taken to hold; everything else that asks for data stays an error."""

import linecache

import pytest
import torch
from torch import Tensor, nn

from fxfuse.errors import TraceError
from fxfuse.passes.demands import Unknown, demanded
from fxfuse.pipeline import analyse

SOURCE = """
assert a > 0
assert not (a and
            b), "words"
assert a and not b
if a or b:
    raise ValueError("no")
if not a: raise ValueError("no")
if a:
    b = 1
assert (a if b else c)
if a: raise ValueError("no") if b else TypeError("yes")
while a: pass
"""


@pytest.mark.parametrize(
    ("line", "truth"),
    [(2, True), (3, False), (4, False), (5, None), (6, False), (7, None), (8, True), (9, None), (11, None), (13, None)],
)
def test_what_a_test_must_be(line: int, truth: bool | None) -> None:
    linecache.cache["demands.py"] = (len(SOURCE), None, SOURCE.splitlines(keepends=True), "demands.py")
    assert demanded("demands.py", line) is truth
    assert demanded("there is no such file", line) is None


class Careful(nn.Module):
    """Looks at its data before it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        assert lengths.max().item() <= 1000 * x.shape[1]
        assert all(part.abs().max() < 1e9 for part in x.chunk(2, 1))
        if (x > 1e6).any() or torch.isinf(x).any():
            raise ValueError("too large")
        if not bool(torch.all(lengths < 1e9)):
            raise ValueError("too long")
        return self.b(torch.relu(self.a(x)))


class Branching(Careful):
    """Computes something else for other data."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        assert x.sum() < 1e9
        if x.sum() > 0:
            x = -x
        return self.b(torch.relu(self.a(x))) + lengths.sum()


def test_a_number_is_not_made_up() -> None:
    with pytest.raises(TraceError, match="a number that depends on the values of the input"):
        int(Unknown(True))


def test_checks_are_taken_to_hold_and_said() -> None:
    found = analyse(Careful(), (torch.randn(2, 4), torch.ones(2)))
    assert found.program.front_end == "fx"
    assert sum("depends on the data and is taken to hold" in note for note in found.program.notes) == 4
    assert len(found.axes.spaces) == 1
    with pytest.raises(TraceError, match="the code branches on the values of a tensor"):
        analyse(Branching(), (torch.randn(2, 4), torch.ones(2)), front_end="fx")
