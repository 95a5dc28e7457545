"""Random, non-degenerate weights, for tests that must not be fooled by zeros, ones and symmetry.

A weight of fan-in ``f`` is drawn from ``N(0, 1.5 / f)``: between the variance that a linear layer and the one that a
ReLU layer needs to keep its activations' size. Norm scales lie in [0.5, 1.5], shifts have deviation 0.2, running means
0.3, running variances lie in [0.5, 2]. No neuron is like another, nothing is zero and activations stay of order one.
"""

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def randomise(module: M, seed: int = 0) -> M:
    """Overwrite all parameters and running statistics of ``module`` with random values; returns the module.

    Same seed, same values, on every device: they are drawn on the CPU in the order of ``named_parameters``. Buffers
    other than running means and variances stay as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    owners = {id(p): owner for owner in module.modules() for p in owner.parameters(recurse=False)}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(_parameter(name.rpartition(".")[2], parameter, owners[id(parameter)], generator))
        for name, buffer in module.named_buffers():
            if "running_mean" in name:
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
            elif "running_var" in name:
                buffer.copy_(0.5 + 1.5 * torch.rand(buffer.shape, generator=generator))
    return module


def _parameter(name: str, parameter: Tensor, owner: nn.Module, generator: torch.Generator) -> Tensor:
    shape = parameter.shape
    normal = torch.randn(shape, generator=generator)
    if any(word in name for word in ("bias", "beta", "shift")):
        return 0.2 * normal
    if isinstance(owner, nn.Embedding):
        return normal
    lengths = [size for size in shape if size > 1]
    if len(lengths) <= 1:  # norm scales, layer scales, gains, class tokens
        return 0.5 + torch.rand(shape, generator=generator)
    if shape[0] == 1:  # positions and other constants that are added to every sample
        return 0.5 * normal
    if isinstance(owner, _TRANSPOSED):
        fan_in = shape[0] * math.prod(shape[2:]) / math.prod(owner.stride)
    else:
        fan_in = math.prod(shape[1:])
    return normal * math.sqrt(1.5 / fan_in)
