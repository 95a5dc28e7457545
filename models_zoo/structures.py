# mypy: disable-error-code="no-any-return"
# ruff: noqa: D102
# (torch types a module's call as Any, and forward is documented by its class: these files read as users write models.)
"""Networks of unusual structure: dense connectivity, U-Net skips, gates, groups, several inputs and outputs.

Images are 3x16x16. ``width`` is the number of neurons of the first hidden space.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseNet(nn.Module):
    """Dense connectivity: every layer reads the concatenation of all earlier ones (pre-activation batch norm)."""

    def __init__(self, width: int = 8, growth: int = 6, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.layers = nn.ModuleList()
        channels = width
        for _ in range(depth):
            self.layers.append(
                nn.Sequential(
                    nn.BatchNorm2d(channels),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(channels, growth, 3, padding=1, bias=False),
                )
            )
            channels += growth
        self.transition = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, width, 1))
        self.head = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, dim=1)))
        x = F.avg_pool2d(self.transition(torch.cat(features, dim=1)), 2)
        return self.head(x.mean(dim=(2, 3)))


def _double(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, padding=1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(inplace=True),
        nn.Conv2d(out, out, 3, padding=1),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """Two halvings and back, by a transposed convolution and by interpolation; one logit map per class."""

    def __init__(self, width: int = 6, classes: int = 4) -> None:
        super().__init__()
        self.down1 = _double(3, width)
        self.down2 = _double(width, 2 * width)
        self.bottom = _double(2 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.join2 = _double(4 * width, 2 * width)
        self.join1 = _double(3 * width, width)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.bottom(F.max_pool2d(b, 2))
        b = self.join2(torch.cat([self.up2(c), b], dim=1))
        up = F.interpolate(b, scale_factor=2.0, mode="bilinear", align_corners=False)
        a = self.join1(torch.cat([up, a], dim=1))
        return self.head(a)


class SqueezeExcite(nn.Module):
    """A gate per channel from the channels' means."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.relu(self.reduce(self.pool(x)))
        return x * torch.sigmoid(self.expand(gate))


class InvertedResidual(nn.Module):
    """Widen, depthwise convolution, squeeze-and-excitation, narrow; added to the input."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.Hardswish(),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.SiLU(inplace=True),
            SqueezeExcite(hidden, max(2, hidden // 4)),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class MobileNet(nn.Module):
    """Two inverted residuals with squeeze-and-excitation."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU6())
        self.blocks = nn.Sequential(InvertedResidual(width, 3 * width), InvertedResidual(width, 2 * width))
        self.head = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.head(x.mean([-1, -2]))


class GroupedNet(nn.Module):
    """Grouped convolutions, a channel shuffle between them, and group norm; ``width`` is a multiple of 8."""

    def __init__(self, width: int = 16, groups: int = 4) -> None:
        super().__init__()
        self.groups = groups
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.grouped1 = nn.Conv2d(width, width, 3, padding=1, groups=groups)
        self.norm = nn.GroupNorm(groups, width)
        self.grouped2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, groups=groups)
        self.point = nn.Conv2d(2 * width, width, 1)
        self.head = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.norm(self.grouped1(x)))
        batch, channels, height, width = x.shape
        x = x.view(batch, self.groups, channels // self.groups, height, width)
        x = x.transpose(1, 2).contiguous().view(batch, channels, height, width)
        x = F.mish(self.grouped2(x))
        x = F.relu(self.point(x))
        return self.head(x.mean((2, 3)))


class TwoInputs(nn.Module):
    """An image and a vector, joined by a product and a concatenation."""

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.vector = nn.Sequential(nn.Linear(6, 2 * width), nn.Tanh(), nn.Linear(2 * width, width))
        self.join = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, 7)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        a = self.image(image).mean((2, 3))
        b = self.vector(vector)
        x = torch.cat([a * b, b], dim=-1)
        return self.head(F.relu(self.join(x)))


class TwoOutputs(nn.Module):
    """A shared trunk with a class head and an auxiliary head that leaves it early."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU())
        self.auxiliary = nn.Sequential(nn.Conv2d(width, 4, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(2 * width, 7)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(x)
        y = self.deep(x).amax((2, 3))
        return self.head(y), self.auxiliary(x)


class DictOutput(nn.Module):
    """Outputs in a dictionary, one of them an embedding of unit length."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(20, width), nn.PReLU(width), nn.Linear(width, width), nn.ELU())
        self.project = nn.Linear(width, 6)
        self.head = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(x)
        return {"logits": self.head(x), "embedding": F.normalize(self.project(x), dim=-1)}


class WaveNet(nn.Module):
    """Dilated one-dimensional convolutions with gates, residuals and summed skips, on 2x24 signals."""

    def __init__(self, width: int = 8, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv1d(2, width, 1)
        self.dilated = nn.ModuleList(
            [nn.Conv1d(width, 2 * width, 3, padding=2**i, dilation=2**i) for i in range(depth)]
        )
        self.residual = nn.ModuleList([nn.Conv1d(width, width, 1) for _ in range(depth - 1)])
        self.skip = nn.ModuleList([nn.Conv1d(width, width, 1) for _ in range(depth)])
        self.head = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        skips = torch.zeros_like(x)
        for index, (dilated, skip) in enumerate(zip(self.dilated, self.skip, strict=True)):
            value, gate = dilated(x).chunk(2, dim=1)
            y = torch.tanh(value) * torch.sigmoid(gate)
            skips = skips + skip(y)
            if index < len(self.residual):
                x = x + self.residual[index](y)
        return self.head(F.relu(skips).mean(-1))


class VolumeNet(nn.Module):
    """Three-dimensional convolutions with instance norm, on 1x8x8x8 volumes."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv3d(1, width, 3, padding=1),
            nn.InstanceNorm3d(width, affine=True),
            nn.LeakyReLU(0.1, inplace=True),
            nn.MaxPool3d(2),
            nn.Conv3d(width, 2 * width, 3, padding=1),
            nn.Softplus(),
        )
        self.head = nn.Linear(8 * 2 * width, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool3d(self.features(x), 2)
        return self.head(x.flatten(1))


class PixelNet(nn.Module):
    """Space to depth and back: pixel unshuffle, convolutions, pixel shuffle; a residual image comes out."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.enter = nn.Conv2d(12, width, 3, padding=1)
        self.middle = nn.Conv2d(width, 4 * width, 1)
        self.leave = nn.Conv2d(width, 3, 3, padding=1, padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        y = F.pixel_unshuffle(x, 2)
        y = F.relu(self.enter(y))
        y = F.pixel_shuffle(self.middle(y), 2)
        return x + self.leave(F.gelu(y))
