"""``int`` of a number that depends on the batch is a size that stays free."""

import pytest
import torch
from torch import nn

from fxfuse.errors import TraceError
from fxfuse.passes.integers import traced_integers
from fxfuse.passes.symbolic import is_user_file
from fxfuse.passes.trace import trace


def parts(x, size):
    return x.reshape(-1, size, x.shape[-1])


def whole(x, size, length):
    batch = int(x.shape[0] / (length / size))
    return x.reshape(batch, length, -1)


class Windows(nn.Module):
    """Counts the batch as the first windowed transformers did, and uses ``int`` as a type beside it."""

    def __init__(self, divide=whole):
        super().__init__()
        self.a, self.divide = nn.Linear(4, 6), divide

    def forward(self, x):
        length = x.shape[1]
        assert isinstance(3, int)
        h = self.divide(self.a(parts(x, 2)), 2, length)
        return h.sum(-1) * int("2")


def test_the_batch_stays_free():
    module = Windows()
    program = trace(module, torch.randn(2, 8, 4), front_end="fx")
    assert not any("kept as one" in note for note in program.notes)
    for batch in (1, 3, 7):
        x = torch.randn(batch, 8, 4)
        assert torch.allclose(program.module(x), module(x))


def test_what_is_no_whole_quotient_is_an_error():
    def odd(x, size, length):
        return x.reshape(int(0.5 + x.shape[0] / (length / size)), length, -1)

    with pytest.raises(TraceError, match="batch"):
        trace(Windows(odd), torch.randn(2, 8, 4), front_end="fx")


def test_the_stand_in_is_int_and_goes_away():
    with traced_integers(Windows(), lambda x: 7 if x == "seven" else None, lambda file: file == __file__):
        assert (int("seven"), int("12"), int(2.5)) == (7, 12, 2)
        assert isinstance(3, int)
        assert issubclass(bool, int)
        assert int == int  # noqa: E721
        assert {int: 1}[int] == 1
    assert type(int) is type
    assert is_user_file("/a/b.py")
