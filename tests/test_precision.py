"""A network in double precision, whatever types its graph names."""

import pytest
import torch
from torch import fx, nn

from fxfuse.passes.precision import doubled, widened


class Named(nn.Module):
    """Types in words, by methods and by default."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.w = nn.Parameter(torch.randn(4, dtype=torch.cfloat))

    def forward(self, x):
        h = self.a(x).float() + torch.zeros(4) + torch.full((4,), 1 / 3) + torch.arange(0.0, 1.0, 0.25)
        h = h.to(torch.float32) * torch.ones(4, dtype=torch.float32)
        return torch.fft.ifft(torch.fft.fft(h) * self.w).real.type(torch.float32)


def test_no_single_precision_is_left():
    module = fx.symbolic_trace(Named())
    x = torch.randn(5, 3)
    wide = doubled(module)(widened(x))
    assert wide.dtype == torch.float64
    assert torch.allclose(module(x).double(), wide, atol=1e-5)
    assert (module(x).double() - wide).abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.complex64, torch.int32, torch.bool])
def test_numbers_are_widened_and_others_kept(dtype):
    wider = {torch.float16: torch.float64, torch.float32: torch.float64, torch.complex64: torch.complex128}
    assert widened(torch.ones(2, dtype=dtype)).dtype == wider.get(dtype, dtype)


def test_the_module_stays_as_it_is():
    module = fx.symbolic_trace(Named())
    code = module.code
    doubled(module)
    assert module.code == code
    assert module.a.weight.dtype == torch.float32
