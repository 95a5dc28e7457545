"""What the dimensions of a constant mean: the permutations that leave its values as they are.

A constant is the same in every parent and is never rewritten, so a dimension of it may be permuted only if that changes
nothing. All slices along a dimension equal (zeros, ones, a value repeated for every neuron): any permutation. Elements
that depend on nothing but whether two indices are the same, as those of the identity do (``a I + b 1 1^T``): any
permutation of both dimensions together. All other dimensions keep their order.
"""

import torch
from torch import Tensor

from fxfuse.passes.variables import Dims, Factor, Var, fresh


def constant_dims(value: Tensor) -> Dims:
    """The dimensions of ``value`` of any shape, as seen by the neurons that it meets."""
    dims = [fresh(n, pinned=not _equal_along(value, i)) for i, n in enumerate(value.shape)]
    for i, n in enumerate(value.shape):
        for j in range(i + 1, value.ndim):
            if n == value.shape[j] > 1 and dims[i][0].var.pinned and dims[j][0].var.pinned and _identity(value, i, j):
                var = Var(n)
                dims[i], dims[j] = [Factor(var)], [Factor(var)]
    return dims


def _equal_along(value: Tensor, dim: int) -> bool:
    """Whether all slices along ``dim`` are equal; what holds no numbers tells nothing."""
    if value.is_meta or value.numel() == 0:
        return False
    return bool(torch.equal(value, value.narrow(dim, 0, 1).expand_as(value)))


def _identity(value: Tensor, first: int, second: int) -> bool:
    """Whether the elements depend on the indices along both dimensions only by whether they are the same."""
    if value.is_meta or value.numel() == 0:
        return False
    square = value.movedim((first, second), (-2, -1))
    same = torch.eye(square.shape[-1], dtype=torch.bool, device=value.device)
    return bool(torch.equal(square, torch.where(same, square[..., :1, :1], square[..., :1, 1:2])))
