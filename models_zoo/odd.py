# mypy: disable-error-code="no-any-return"
# ruff: noqa: D102
# (torch types a module's call as Any, and forward is documented by its class: these files read as users write models.)
"""Ordinary networks in odd spellings: what users write when they do not think of a compiler.

Each is small, takes 3x16x16 images or vectors, and can be trained. ``width`` is the number of neurons of its first
hidden space.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FunctionalMLP(nn.Module):
    """``F.linear`` and ``@`` on parameters held by the model itself."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.weight1 = nn.Parameter(0.2 * torch.randn(width, 20))
        self.bias1 = nn.Parameter(torch.zeros(width))
        self.weight2 = nn.Parameter(0.2 * torch.randn(width, 2 * width))
        self.weight3 = nn.Parameter(0.2 * torch.randn(7, 2 * width))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.linear(x, self.weight1, self.bias1))
        x = torch.tanh(x @ self.weight2)
        return F.linear(x, self.weight3)


class FunctionalConvNet(nn.Module):
    """``F.conv2d`` and ``F.batch_norm`` on parameters and buffers held by the model itself."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.kernel1 = nn.Parameter(0.2 * torch.randn(width, 3, 3, 3))
        self.norm_weight = nn.Parameter(torch.ones(width))
        self.norm_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.kernel2 = nn.Parameter(0.1 * torch.randn(2 * width, width, 3, 3))
        self.bias2 = nn.Parameter(torch.zeros(2 * width))
        self.head = nn.Linear(2 * width * 16, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.kernel1, None, stride=1, padding=1)
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.norm_weight, self.norm_bias, training=self.training, eps=1e-3
        )
        x = F.max_pool2d(F.relu(x, inplace=True), 2)
        x = F.leaky_relu(F.conv2d(x, self.kernel2, self.bias2, padding=1), 0.1)
        x = F.avg_pool2d(x, 2)
        return self.head(torch.flatten(x, 1))


class InPlaceNet(nn.Module):
    """In-place arithmetic, activations and writes into slices of a tensor."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.side = nn.Conv2d(3, width - width // 2, 1)
        self.body = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        half = y.shape[1] // 2
        y[:, :half] *= 0.5
        y[:, half:].add_(self.side(x))
        y.relu_()
        z = self.norm(self.body(y))
        z += y
        z.mul_(0.7).clamp_(min=-1.0)
        z[:, :, 0] = 0.0
        z = F.silu(z, inplace=True)
        return self.head(z.mean((-2, -1)))


class Maxout(nn.Module):
    """Maxout through ``x.view(x.shape[0], -1, 4)``: each neuron owns four pieces."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.fc1 = nn.Linear(20, 4 * width)
        self.fc2 = nn.Linear(width, 8 * width)
        self.fc3 = nn.Linear(2 * width, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        x = x.view(x.shape[0], -1, 4).max(dim=-1)[0]
        x = self.fc2(x)
        x = x.reshape(x.size(0), x.size(1) // 4, 4).amax(2)
        return self.fc3(x)


class EinsumNet(nn.Module):
    """Linear layers and multi-head attention in ``torch.einsum``, with ellipses, on tokens of width 10."""

    def __init__(self, width: int = 12, heads: int = 2) -> None:
        super().__init__()
        each = width // heads
        self.embed = nn.Parameter(0.3 * torch.randn(width, 10))
        self.query = nn.Parameter(0.3 * torch.randn(heads, each, width))
        self.key = nn.Parameter(0.3 * torch.randn(heads, each, width))
        self.value = nn.Parameter(0.3 * torch.randn(heads, each, width))
        self.out = nn.Parameter(0.3 * torch.randn(width, heads, each))
        self.head = nn.Linear(width, 7)
        self.scale = each**-0.5

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("...i,oi->...o", x, self.embed)
        q = torch.einsum("btd,hkd->bhtk", x, self.query) * self.scale
        k = torch.einsum("btd,hkd->bhtk", x, self.key)
        v = torch.einsum("...td,hkd->...htk", x, self.value)
        weights = torch.einsum("...qd,...kd->...qk", q, k).softmax(-1)
        y = torch.einsum("bhqk,bhkd->bqhd", weights, v)
        x = x + torch.einsum("bqhd,ohd->bqo", y, self.out)
        return self.head(x.mean(1))


class TiedAutoencoder(nn.Module):
    """Encoder and decoder share one weight: ``W`` down, ``W`` transposed up."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.encoder = nn.Linear(20, width)
        self.mix = nn.Linear(width, width)
        self.decoder_bias = nn.Parameter(torch.zeros(20))

    def forward(self, x: Tensor) -> Tensor:
        z = F.elu(self.encoder(x))
        z = torch.sigmoid(self.mix(z))
        return F.linear(z, self.encoder.weight.t(), self.decoder_bias)


class SharedLayers(nn.Module):
    """One layer called three times, and one registered under two names."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.enter = nn.Linear(20, width)
        self.step = nn.Linear(width, width)
        self.left = nn.Linear(width, width)
        self.right = self.left
        self.head = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x))
        for _ in range(3):
            x = x + torch.relu(self.step(x))
        return self.head(self.left(x) * torch.sigmoid(self.right(x)))


class StandardisedConv(nn.Conv2d):
    """Convolution whose weight is standardised per output channel and scaled by a learned gain."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(out, 1, 1, 1))

    def forward(self, input: Tensor) -> Tensor:
        mean = self.weight.mean(dim=(1, 2, 3), keepdim=True)
        variance = self.weight.var(dim=(1, 2, 3), keepdim=True, unbiased=False)
        fan_in = self.weight[0].numel()
        weight = self.gain * (self.weight - mean) * torch.rsqrt(variance * fan_in + 1e-4)
        return F.conv2d(input, weight, self.bias, self.stride, self.padding)


class WeightArithmetic(nn.Module):
    """Parameters in arithmetic: standardised kernels, a learned temperature, a softplus scale per channel."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1 = StandardisedConv(3, width)
        self.conv2 = StandardisedConv(width, width)
        self.branch_scale = nn.Parameter(torch.zeros(width))
        self.temperature = nn.Parameter(torch.ones(()))
        self.head = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = x + F.softplus(self.branch_scale).view(1, -1, 1, 1) * self.conv2(x)
        x = F.adaptive_avg_pool2d(F.relu(x), (1, 1)).squeeze(-1).squeeze(-1)
        weight = F.normalize(self.head.weight, dim=1)
        return F.linear(x, weight, self.head.bias) / self.temperature.abs().clamp(min=0.1)


class Lambda(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def lambda_net(width: int = 8) -> nn.Sequential:
    """A ``Sequential`` with lambda layers between convolutions."""
    return nn.Sequential(
        Lambda(lambda x: x - x.mean(dim=(1, 2, 3), keepdim=True)),
        nn.Conv2d(3, width, 3, padding=1),
        Lambda(lambda x: x * torch.sigmoid(x)),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        Lambda(lambda x: torch.cat([F.relu(x), F.relu(-x)], dim=1)),
        nn.Conv2d(4 * width, width, 1),
        Lambda(lambda x: x.mean([2, 3])),
        nn.Linear(width, 7),
    )


class NestedContainers(nn.Module):
    """``ModuleList`` of ``ModuleDict`` of ``Sequential``, and a ``ParameterList``, walked by Python loops."""

    def __init__(self, width: int = 12, depth: int = 3) -> None:
        super().__init__()
        self.enter = nn.Linear(20, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(width),
                    "mlp": nn.Sequential(nn.Linear(width, 2 * width), nn.Sequential(nn.GELU(), nn.Dropout(0.1))),
                    "out": nn.Linear(2 * width, width),
                }
            )
            for _ in range(depth)
        )
        self.scales = nn.ParameterList([nn.Parameter(torch.full((width,), 0.5)) for _ in range(depth)])
        self.head = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for scale, block in zip(self.scales, self.blocks, strict=True):
            assert isinstance(block, nn.ModuleDict)
            y = x
            for layer in block.values():
                y = layer(y)
            x = x + scale * y
        return self.head(x)


class ConstantBranches(nn.Module):
    """Branches on constants, and modules without parameters that are made in ``forward``."""

    def __init__(self, width: int = 8, pool: str = "average", norm: bool = True, depth: int = 2) -> None:
        super().__init__()
        self.pool = pool
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width) if norm else None
        for index in range(depth):
            setattr(self, f"conv{index}", nn.Conv2d(width, width, 3, padding=1))
        self.depth = depth
        self.head = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.norm is not None:
            x = self.norm(x)
        for index in range(self.depth):
            x = F.relu(getattr(self, f"conv{index}")(x))
            pool = nn.AvgPool2d(2) if self.pool == "average" and index == 0 else nn.MaxPool2d(2)
            x = pool(x)
        if x.dim() == 4 and x.shape[2] > 1:
            x = nn.functional.adaptive_max_pool2d(x, 1)
        return self.head(torch.flatten(x, start_dim=1))


class SliceNet(nn.Module):
    """Channels cut apart, treated differently, put together again in another order."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.third = width // 3
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.first = nn.Conv2d(self.third, self.third, 3, padding=1)
        self.second = nn.Conv2d(width - self.third, self.third, 1)
        self.head = nn.Linear(3 * self.third, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        a, b = x[:, : self.third], x[:, self.third :]
        c = x.narrow(1, 0, self.third)
        a = self.first(a) + c
        x = torch.cat((self.second(b), a, torch.maximum(a, c)), 1)
        return self.head(x.amax(dim=(2, 3)))
