"""Small networks for the laws of the axes pass: a function over named parts, traced as it stands."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxfuse.models_zoo.randomise import randomise
from fxfuse.passes.axes import axes
from fxfuse.passes.axis_law import permutation_error
from fxfuse.types import Axes, Program


class Net(nn.Module):
    """``body(net, x)`` over named modules; a tuple of sizes makes a parameter, a tensor a buffer."""

    def __init__(self, body: Callable[..., Any], **parts: nn.Module | tuple[int, ...] | Tensor) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            elif isinstance(part, Tensor):
                self.register_buffer(name, part)
            else:
                self.register_parameter(name, nn.Parameter(torch.zeros(part)))
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


class Net2(Net):
    """The same with two inputs."""

    def forward(self, x: Tensor, y: Tensor) -> Any:  # type: ignore[override]
        return self.body(self, x, y)


def program(module: nn.Module, *example: Tensor) -> Program:
    """The module with random weights, traced."""
    module = randomise(module, seed=1).eval()
    graph = fx.symbolic_trace(module)
    return Program("net", graph, example, "fx")


def tensor(*shape: int) -> Tensor:
    """A batch of standard normal numbers."""
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(7))


def found(result: Axes) -> str:
    """The free spaces by size, nested ones as ``owners*size``: ``"8 4*16"``."""
    sizes = {space.id: space.size for space in result.spaces}
    return " ".join(f"{sizes[s.outer]}*{s.size}" if s.outer is not None else str(s.size) for s in result.spaces)


def check(module: nn.Module, *example: Tensor, seeds: int = 3) -> Axes:
    """The law holds; returns the axes."""
    p = program(module, *example)
    result = axes(p)
    for seed in range(seeds):
        error = permutation_error(p, result, seed)
        assert error < 1e-10, f"permuted outputs differ by {error:.2g}: {found(result)}"
    return result
