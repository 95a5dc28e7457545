# mypy: disable-error-code="no-any-return"
# ruff: noqa: D102
# (torch types a module's call as Any, and forward is documented by its class: these files read as users write models.)
"""Vision transformer for small images, with ``nn.MultiheadAttention``.

Tokens ``t = [class, patches] + position``; every layer ``t += attention(norm(t)); t += mlp(norm(t))``; the head reads
the class token.
"""

import torch
from torch import Tensor, nn


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        y, _ = self.attention(y, y, y, need_weights=False)
        x = x + y
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Vision transformer with a class token and learned positions."""

    def __init__(
        self,
        image: int = 32,
        patch: int = 4,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        classes: int = 10,
        channels: int = 3,
    ) -> None:
        super().__init__()
        tokens = (image // patch) ** 2
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, tokens + 1, width))
        self.layers = nn.ModuleList([EncoderLayer(width, heads, 2 * width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])


def vit_small(width: int = 64, depth: int = 4, heads: int = 4, classes: int = 10) -> ViT:
    """A ViT for 32x32 images that trains on a CPU: patches of 4, four layers of width 64."""
    return ViT(width=width, depth=depth, heads=heads, classes=classes)


def vit_cifar(width: int = 384, depth: int = 7, heads: int = 6, classes: int = 10) -> ViT:
    """A ViT for 32x32 images of a usual size: patches of 4, seven layers of width 384."""
    return ViT(width=width, depth=depth, heads=heads, classes=classes)
