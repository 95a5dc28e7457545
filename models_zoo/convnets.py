# mypy: disable-error-code="no-any-return"
# ruff: noqa: D102
# (torch types a module's call as Any, and forward is documented by its class: these files read as users write models.)
"""Convolutional image classifiers: VGG with batch norm, residual networks, and a small one for 8x8 digits.

``width`` is the number of channels of the first stage; all others are multiples of it.
"""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Shortcut = Literal["projection", "pad"]

VGG11 = (1, "M", 2, "M", 4, 4, "M", 8, 8, "M", 8, 8, "M")
"""VGG11's eight convolutions, in multiples of the width, and its max pools."""


class VGG(nn.Module):
    """VGG with batch norm for small images (32x32: the last pool leaves one position) and one linear layer on top."""

    def __init__(
        self, plan: Sequence[int | str] = VGG11, width: int = 64, classes: int = 10, channels: int = 3
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for item in plan:
            if isinstance(item, str):
                layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
                continue
            out = item * width
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
            channels = out
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = x.flatten(1)
        return self.classifier(x)


def vgg11_bn(width: int = 64, classes: int = 10) -> VGG:
    """VGG11 with batch norm for 32x32 images: 64-128-256-256-512-512-512-512 channels at the default width."""
    return VGG(VGG11, width=width, classes=classes)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the input.

    Where the shape changes the shortcut is a 1x1 convolution with batch norm (``projection``, "option B") or every
    second pixel with new channels of zeros on both sides (``pad``, "option A").
    """

    def __init__(self, channels: int, out: int, stride: int = 1, shortcut: Shortcut = "projection") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.stride = stride
        self.extra = out - channels
        self.downsample: nn.Module | None = None
        if shortcut == "projection" and (stride != 1 or channels != out):
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.downsample is not None:
            x = self.downsample(x)
        elif self.stride != 1 or self.extra:
            x = F.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2)
            )
        y = y + x
        return F.relu(y)


class ResNet(nn.Module):
    """Residual network for small images: a 3x3 stem, then one stage per entry of ``blocks``.

    Every stage after the first halves the image and doubles the channels.
    """

    def __init__(
        self,
        blocks: Sequence[int] = (3, 3, 3),
        width: int = 16,
        classes: int = 10,
        channels: int = 3,
        shortcut: Shortcut = "projection",
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        stages: list[nn.Module] = []
        current = width
        for stage, count in enumerate(blocks):
            out = width * 2**stage
            strides = [1 if stage == 0 else 2] + [1] * (count - 1)
            layers: list[nn.Module] = []
            for stride in strides:
                layers.append(ResidualBlock(current, out, stride, shortcut))
                current = out
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(current, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.stages(x)
        x = self.avgpool(x).flatten(1)
        return self.fc(x)


def resnet20(width: int = 16, classes: int = 10, shortcut: Shortcut = "projection") -> ResNet:
    """ResNet-20 for 32x32 images: three stages of three blocks, 16-32-64 channels at the default width."""
    return ResNet((3, 3, 3), width=width, classes=classes, shortcut=shortcut)


def resnet18(width: int = 64, classes: int = 10) -> ResNet:
    """ResNet-18 for 32x32 images: four stages of two blocks, 64 to 512 channels, 3x3 stem without pooling."""
    return ResNet((2, 2, 2, 2), width=width, classes=classes)


def digits_net(width: int = 16, classes: int = 10) -> ResNet:
    """A residual network with batch norm for 8x8 grey digits: two stages of one block, ``width`` and twice that."""
    return ResNet((1, 1), width=width, classes=classes, channels=1)
