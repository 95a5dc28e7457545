"""What is spelt out for ONNX computes the same, and nothing else is touched."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxfuse.export import exported, to_onnx
from fxfuse.onnx_forms import adaptive_average, with_forms


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 4), (5, 5, 2), (5, 7, 3), (6, 1, 9)])
def test_adaptive_average_is_torchs(size: tuple[int, int, int]) -> None:
    x = torch.rand(2, 3, 5, 7, 3, dtype=torch.float64)
    assert torch.allclose(adaptive_average(x, size), F.adaptive_avg_pool3d(x, size), rtol=1e-12)


class Volume(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv3d(2, 4, 3), nn.AdaptiveAvgPool3d(size)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.conv(x)).flatten(1)


class Recurrent(nn.Module):
    def __init__(self, **options: int | bool) -> None:
        super().__init__()
        self.cell = nn.LSTM(3, 6, 2, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0].mean(1)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (Volume(1), (2, 2, 7, 6, 5)),
        (Volume(3), (2, 2, 7, 6, 5)),
        (Recurrent(proj_size=2), (2, 5, 3)),
        (Recurrent(proj_size=2, bidirectional=True, bias=False), (2, 5, 3)),
    ],
    ids=["mean", "bins", "projected", "projected both ways"],
)
def test_they_become_onnx(network: nn.Module, shape: tuple[int, ...], tmp_path) -> None:
    network.eval()
    program = exported(network, (torch.rand(shape),))
    assert with_forms(program) is not program
    assert to_onnx(program, (torch.rand(shape),), tmp_path / "m.onnx").max_rel < 1e-5


def test_a_program_that_needs_none_stays() -> None:
    program = exported(Recurrent().eval(), (torch.rand(2, 5, 3),))
    assert with_forms(program) is program


def test_padding_before_a_maximum_stays_what_it_is(tmp_path) -> None:
    network = nn.Sequential(nn.ConstantPad2d(1, 0.5), nn.MaxPool2d(3, 2))
    x = -torch.rand(2, 3, 8, 8) - 1  # so that what is padded with is the largest at the border
    program = exported(network, (x,))
    before = str(program.graph)
    assert to_onnx(program, (x,), tmp_path / "m.onnx").max_rel == 0
    assert str(program.graph) == before
