"""What is spelt out for ONNX computes the same, and nothing else is touched."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxfuse.export import exported, to_onnx
from fxfuse.export.onnx_forms import adaptive_average, attention, distances, runs, with_forms


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 4), (5, 5, 2), (5, 7, 3), (6, 1, 9)])
def test_adaptive_average_is_torchs(size: tuple[int, int, int]) -> None:
    x = torch.rand(2, 3, 5, 7, 3, dtype=torch.float64)
    assert torch.allclose(adaptive_average(x, size), F.adaptive_avg_pool3d(x, size), rtol=1e-12)


@pytest.mark.parametrize("lead", [(), (2,), (2, 3), (2, 3, 2)])
@pytest.mark.parametrize("kind", ["plain", "causal", "added", "allowed", "scaled"])
def test_attention_is_torchs(lead: tuple[int, ...], kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(*lead, n, 6, dtype=torch.float64, generator=generator) for n in (5, 7, 7))
    scores = torch.randn(*lead, 5, 7, dtype=torch.float64, generator=generator)
    allowed = (scores > 0).index_fill(-1, torch.tensor(0), True)
    chosen = {
        "plain": {},
        "causal": {"is_causal": True},
        "added": {"attn_mask": scores},
        "allowed": {"attn_mask": allowed},
        "scaled": {"scale": 0.3},
    }[kind]
    want = F.scaled_dot_product_attention(q, k, v, **chosen)
    assert torch.allclose(attention(q, k, v, **chosen), want, rtol=1e-10, atol=1e-12)


def test_attention_of_groups_is_torchs() -> None:
    q, k, v = torch.randn(2, 4, 5, 6), torch.randn(2, 2, 7, 6), torch.randn(2, 2, 7, 6)
    assert torch.allclose(
        attention(q, k, v, enable_gqa=True), F.scaled_dot_product_attention(q, k, v, enable_gqa=True), atol=1e-6
    )


@pytest.mark.parametrize("p", [0.0, 1.0, 2.0, 3.0, float("inf")])
def test_distances_are_torchs(p: float) -> None:
    a, b = torch.randn(2, 5, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    assert torch.allclose(distances(a, b, p), torch.cdist(a, b.expand(2, 4, 3), p), rtol=1e-10)


def test_products_in_runs_are_those_of_the_runs() -> None:
    x, weight = torch.randn(7, 3, dtype=torch.float64), torch.randn(4, 3, 5, dtype=torch.float64)
    want = torch.cat([x[:2] @ weight[0], x[2:5] @ weight[2], torch.zeros(2, 5)])
    torch.testing.assert_close(runs(x, weight, torch.tensor([2, 2, 5, 5])), want)


class Codes(nn.Module):
    """The nearest code, and how far it is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.codes = nn.Linear(3, 6), nn.Parameter(torch.randn(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        apart = torch.cdist(self.a(x), self.codes)
        return torch.cat([self.codes[apart.argmin(-1)], apart], -1)


class Windows(nn.Module):
    """Attention inside windows, whose number is a dimension of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 18)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], 3, 2, 4, 3, 6).permute(4, 0, 1, 2, 3, 5)
        return F.scaled_dot_product_attention(q, k, v).mean((1, 2))


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
        (Windows(), (2, 24, 6)),
        (Codes(), (2, 4, 3)),
        (Recurrent(proj_size=2), (2, 3, 3)),
        (Recurrent(proj_size=2, bidirectional=True, bias=False), (2, 3, 3)),
    ],
    ids=["mean", "bins", "attention", "distances", "projected", "projected both ways"],
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
