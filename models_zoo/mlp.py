# mypy: disable-error-code="no-any-return"
# ruff: noqa: D102
# (torch types a module's call as Any, and forward is documented by its class: these files read as users write models.)
"""Multi-layer perceptrons, and readers for trained ones that others published.

``y = W_L relu(... relu(W_1 x + b_1) ...) + b_L``, the image flattened first.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


def mlp(widths: Sequence[int] = (784, 256, 10), bias: bool = True) -> nn.Sequential:
    """Linear layers of the given widths (input, hidden ..., output) with ReLU between them, as one ``Sequential``."""
    if len(widths) < 2:
        raise ValueError(f"an MLP needs at least an input and an output width. Got {tuple(widths)}")
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def neuron_interpolation_mlp(hidden: int = 256) -> nn.Sequential:
    """The MNIST network of *Model Fusion via Neuron Interpolation*: 784-256-10, ReLU, bias.

    Expects ``(x / 255 - 0.1307) / 0.3081``.
    """
    return nn.Sequential(nn.Flatten(), nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 10))


class OTFusionMLP(nn.Module):
    """The MNIST network of *Model Fusion via Optimal Transport*: 784-400-200-100-10, ReLU, no bias."""

    def __init__(self, widths: tuple[int, int, int] = (400, 200, 100)) -> None:
        super().__init__()
        a, b, c = widths
        self.fc1 = nn.Linear(784, a, bias=False)
        self.fc2 = nn.Linear(a, b, bias=False)
        self.fc3 = nn.Linear(b, c, bias=False)
        self.fc4 = nn.Linear(c, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        x = torch.relu(self.fc1(x))
        x = torch.relu(self.fc2(x))
        x = torch.relu(self.fc3(x))
        return self.fc4(x)


def load_neuron_interpolation(path: str | Path) -> nn.Sequential:
    """The network of :func:`neuron_interpolation_mlp` with the weights of a safetensors file, in evaluation mode."""
    model = neuron_interpolation_mlp()
    _load(model, path)
    return model


def load_otfusion(path: str | Path) -> OTFusionMLP:
    """An :class:`OTFusionMLP` with the weights of a safetensors file, in evaluation mode."""
    model = OTFusionMLP()
    _load(model, path)
    return model


def _load(model: nn.Module, path: str | Path) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no weight file {path}: give the path of a .safetensors file")
    model.load_state_dict(load_file(path))
    model.eval()
