"""Networks in spellings that no rule was written for: each is taken as it is, and its result is pinned."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class StatelessNorm(nn.Module):
    """Batch norm as a function, whose statistics the module keeps under names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.gain, self.shift = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))
        self.register_buffer("m", torch.zeros(8))
        self.register_buffer("v", torch.ones(8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(self.conv(x), self.m, self.v, self.gain, self.shift, self.training, 0.1, 1e-5)
        return self.head(x.relu().flatten(2).mean(-1))


class Fours(nn.Module):
    """Heads of width four by ``view`` with a free middle."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y = y.view(x.shape[0], -1, 4)
        y = y * torch.sigmoid(y.sum(dim=2, keepdim=True))
        return self.b(y.view(y.size(0), y.size(1) * 4))


class Ellipsis(nn.Module):
    """Attention in einsum with ellipses, keys and values by one parameter each."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Parameter(torch.randn(3, 6, 5)), nn.Parameter(torch.randn(3, 6, 5))
        self.v, self.o = nn.Parameter(torch.randn(3, 6, 5)), nn.Parameter(torch.randn(3, 5, 6))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("...nd,hde->...hne", x, w) for w in (self.q, self.k, self.v))
        weight = torch.einsum("...ie,...je->...ij", q, k).div(5**0.5).softmax(dim=-1)
        return torch.einsum("...hij,...hje,hed->...id", weight, v, self.o)


class SliceWriter(nn.Module):
    """Halves of a tensor written in place, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        h[:, :5] *= 2.0
        h[:, 5:].clamp_(min=0.0)
        h[..., 2:4] = h[..., 2:4].tanh()
        return self.b(h)


class Shared(nn.Module):
    """One matrix forwards and backwards, and one layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.mix = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.mix(torch.tanh(self.mix(self.embed(x))))
        return h.mean(1) @ self.embed.weight.t()


class Arithmetic(nn.Module):
    """Weights that are computed: positive, of norm one, and a product of two factors."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.randn(9, 6))
        self.left, self.right = nn.Parameter(torch.randn(7, 3)), nn.Parameter(torch.randn(3, 9))
        self.scale = nn.Parameter(torch.ones(7))
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.linear(x, F.softplus(self.raw) / self.raw.norm(dim=1, keepdim=True)).relu()
        return self.head(torch.addcmul(torch.zeros(()), F.linear(h, self.left @ self.right), self.scale))


class Lambda(nn.Module):
    """A function as a layer."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args)


def lambdas() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 12, 3, padding=1),
        Lambda(lambda x: x.unflatten(1, (2, 6)).prod(1)),
        Lambda(lambda x: F.adaptive_max_pool1d(x, 1).squeeze(-1)),
        nn.Linear(6, 8),
        Lambda(lambda x: x[:, None].expand(-1, 3, -1).reshape(-1, 24)),
        nn.Linear(24, 4),
    )


class Nested(nn.Module):
    """Layers in dictionaries of lists, walked by name."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.ModuleDict(
            {name: nn.ModuleList([nn.Linear(6, 9), nn.Sequential(nn.LayerNorm(9), nn.GELU())]) for name in "ab"}
        )
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(9)) for _ in range(2)])
        self.head = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        parts = [
            norm(linear(x)) * scale for (linear, norm), scale in zip(self.table.values(), self.scales, strict=True)
        ]
        return self.head(torch.stack(parts, 0).amax(0))


class Branches(nn.Module):
    """Branches on settings, shapes and the number of layers; one of the layers is made on the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(6, 8), nn.Linear(8, 4)
        self.b = nn.LazyLinear(8)
        self.b(torch.zeros(2, 8))
        self.mode = "wide"

    def forward(self, x: Tensor) -> Tensor:
        pool = nn.AvgPool1d(2) if x.shape[-1] > 100 else nn.Identity()
        h = self.a(x)
        if self.mode == "wide" and h.dim() == 2:
            h = F.silu(self.b(pool(h)), inplace=True)
        for i in range(h.ndim):
            h = h + i
        return self.c(h)


class Hypernet(nn.Module):
    """A bias table that a small network computes from saved coordinates."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grid", torch.linspace(-1, 1, 14).reshape(7, 2))
        self.a, self.b = nn.Linear(2, 16), nn.Linear(16, 9)
        self.x, self.head = nn.Linear(6, 9), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        table = self.b(torch.relu(self.a(self.grid)))
        return self.head(torch.tanh(self.x(x)[:, None] + table).mean(1))


class Rotary(nn.Module):
    """One head with rotary positions from a saved table of frequencies."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8)
        self.head = nn.Linear(8, 4)
        self.register_buffer("frequency", torch.tensor([1.0, 0.5, 0.25, 0.125]))

    def turn(self, x: Tensor) -> Tensor:
        angle = torch.outer(torch.arange(x.shape[1], dtype=x.dtype), self.frequency)
        a, b = x[..., :4], x[..., 4:]
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.turn(self.q(x)), self.turn(self.k(x))
        return self.head(((q @ k.mT).softmax(-1) @ self.v(x)).mean(1))


class Windows(nn.Module):
    """Patches by ``unfold``, put back by ``fold``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix = nn.Conv2d(3, 6, 1), nn.Linear(24, 24)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(self.conv(x), 2, stride=2).transpose(1, 2)
        image = F.fold(self.mix(patches).transpose(1, 2), x.shape[-2:], 2, stride=2)
        return self.head(image.mean((-2, -1)))


def parametrised() -> nn.Module:
    return nn.Sequential(
        parametrizations.weight_norm(nn.Linear(6, 10)), nn.ReLU(), nn.Linear(10, 8, bias=False), nn.PReLU(8),
        nn.Linear(8, 4),
    )  # fmt: skip


class Mixture(nn.Module):
    """Soft experts held in one stacked parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 3)
        self.up, self.down = nn.Parameter(torch.randn(3, 6, 7)), nn.Parameter(torch.randn(3, 7, 4))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.matmul(x, self.up).relu()
        answers = torch.bmm(hidden, self.down)
        return (answers * self.gate(x).softmax(1).t().unsqueeze(-1)).sum(0)


IMAGE, VECTOR, TOKENS = (3, 8, 8), (6,), (5, 6)
NETS = {
    "functional batch norm": (StatelessNorm, IMAGE),
    "view with a free middle": (Fours, VECTOR),
    "einsum with ellipses": (Ellipsis, TOKENS),
    "slices written in place": (SliceWriter, VECTOR),
    "shared and tied": (Shared, None),
    "parameters in arithmetic": (Arithmetic, VECTOR),
    "lambda layers": (lambdas, (3, 8)),
    "nested containers": (Nested, VECTOR),
    "constant branches": (Branches, VECTOR),
    "hypernetwork": (Hypernet, VECTOR),
    "rotary positions": (Rotary, TOKENS),
    "unfold and fold": (Windows, IMAGE),
    "parametrisations": (parametrised, VECTOR),
    "stacked experts": (Mixture, VECTOR),
}


def example(shape, batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if shape is None:
        return torch.randint(20, (batch, 5), generator=generator)
    return torch.randn((batch, *shape), generator=generator)
