"""Proxies in the user's code; and what tracing leaves behind in torch: nothing."""

import subprocess
import sys
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxfuse.passes.axes import axes
from fxfuse.passes.checking import difference
from fxfuse.passes.trace import trace


def by_kind(x, pattern):
    """Re-brackets as libraries for arrays of many kinds do: they ask what they were given."""
    if not isinstance(x, Tensor):
        raise RuntimeError(f"tensor type unknown: {type(x)}")
    return x.reshape(*x.shape[:-1], pattern, -1)


class Dispatched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x):
        steps = x if torch.is_tensor(x) else torch.tensor([x])
        return self.b(by_kind(self.a(steps), 2).flatten(-2))


def test_proxies_say_that_they_are_tensors():
    program = trace(Dispatched(), torch.randn(2, 5))
    assert program.front_end == "fx"
    assert [space.size for space in axes(program).spaces] == [2, 4]


class OfOld(nn.Module):
    """Numbers of numpy, names of types and variables: as it was written when they were needed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = np.float32(0.5) * self.a(x) * np.float64(3)
        side = int(np.sqrt(h.shape[1] * 2))
        h = h.view(-1, np.prod((4, 2))).view(h.size(0), side, np.int64(2)).transpose(1, 2).reshape(h.size(0), -1)
        zeros = torch.autograd.Variable(torch.zeros(h.size(0), 8).type(h.type()))
        return self.b(torch.cat([zeros + torch.ones(8).to(h.dtype), h], 1)[:, 8:])


def test_numbers_of_numpy_and_variables_are_followed():
    torch.manual_seed(0)
    net = OfOld()
    program = trace(net, torch.randn(2, 5))
    assert program.front_end == "fx"
    assert [space.size for space in axes(program).spaces] == [4, 2]
    x = torch.randn(7, 5)
    assert difference(net(x), program.module(x))[0] <= 1e-6


def gate(x: Tensor) -> Tensor:
    return x * x.sigmoid()


class Scripted(Dispatched):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.b(self.function(self.a(x)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_functions_are_followed_by_export():
    """They read memory: a proxy that passed for a tensor in C would be the end of the process."""
    program = trace(Scripted(torch.jit.script(gate)), torch.randn(2, 5))
    assert program.front_end == "export"
    assert [space.size for space in axes(program).spaces] == [8]


class Remembering(Dispatched):
    def __init__(self) -> None:
        super().__init__()
        self.remembered = lru_cache(lambda *sizes: sizes)

    def forward(self, x):
        self.weight = self.a.weight
        return super().forward(x.view(self.remembered(*x.shape)) + F.linear(x, self.weight).mean(1, keepdim=True))


def test_nothing_is_kept_of_a_trace(monkeypatch):
    """Neither in the module, nor by einops, which keeps what it has found for some sizes."""
    net = Remembering()
    monkeypatch.setitem(sys.modules, "einops.einops", SimpleNamespace(found=net.remembered))
    program = trace(net, torch.randn(2, 5), front_end="fx")
    assert net.remembered.cache_info().currsize == 0
    assert program.module.state_dict().keys() == net.state_dict().keys() == Dispatched().state_dict().keys()


class MaxNorm(nn.Conv2d):
    def forward(self, x):
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=0.5)
        return super().forward(x)


class Rewritten(nn.Module):
    """Parameters that get other numbers before their layers read them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = MaxNorm(3, 6, 3), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 4, 1)

    def forward(self, x):
        with torch.no_grad():
            self.second.weight.data.clamp_(min=-0.1)
        self.third.weight.data = self.third.weight.data / self.third.weight.data.norm()
        return self.third(F.relu(self.second(self.first(x))))


def test_what_a_layer_reads_is_what_the_code_gave_it():
    """With other weights than those that it was traced with, the graph does as the network does."""
    torch.manual_seed(0)
    program = trace(Rewritten(), torch.randn(2, 3, 6, 6))
    net = Rewritten()
    program.module.load_state_dict({name: 3 * value for name, value in net.state_dict().items()})
    net.load_state_dict(program.module.state_dict())
    x = torch.randn(4, 3, 6, 6)
    want, have = net.eval()(x), program.module(x)
    assert difference(want, have)[0] <= 1e-6
    assert sorted(space.size for space in axes(program).spaces) == [5, 6]


LEFT_BEHIND = """
import gc, weakref, torch
from fxfuse.passes.trace import trace

program = trace(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)), torch.randn(2, 4))
gone = weakref.ref(program.module)
del program
gc.collect()
assert gone() is None, "the first traced network is kept for ever"
assert torch.overrides.is_tensor_method_or_property(torch.Tensor.expand), "torch's list of methods holds a wrapper"
"""


def test_nothing_keeps_a_traced_network():
    """In a process of its own: torch lists its functions once."""
    subprocess.run([sys.executable, "-c", LEFT_BEHIND], check=True)
