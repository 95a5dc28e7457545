"""A network in double precision: its tensors, and the types that its graph names.

Laws are tested where rounding is small. ``module.double()`` casts real parameters and buffers alone; a graph also holds
complex ones, and types in words (``x.float()``, ``zeros(n, dtype=float32)``), which would bring single precision back.
"""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

_WIDER = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
}
_MADE = frozenset({torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn, torch.eye, torch.linspace})
"""Functions whose result is in the default precision unless a type is given; that of others follows their numbers."""
_METHODS = {"float": "double", "half": "double", "bfloat16": "double", "cfloat": "cdouble"}


def widened(x: Tensor) -> Tensor:
    """Real numbers as float64, complex ones as complex128, others as they are."""
    return x.to(_WIDER.get(x.dtype, x.dtype))


def doubled(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of ``module`` that computes in double precision whatever types its graph names."""
    wide: dict[int, Any] = {id(p): nn.Parameter(_own(p), p.requires_grad) for p in module.parameters()}
    wide |= {id(b): _own(b) for b in module.buffers()}
    twin = copy.deepcopy(module, wide)  # what is in ``wide`` is not copied in single precision first
    for node in twin.graph.nodes:
        node.args, node.kwargs = (fx.node.map_aggregate(tree, _wider) for tree in (node.args, node.kwargs))
        if node.op == "call_method":
            node.target = _METHODS.get(node.target, node.target)
        elif _takes_the_default(node):
            node.kwargs = {**node.kwargs, "dtype": torch.float64}
    twin.recompile()
    return twin


def _own(x: Tensor) -> Tensor:
    return x.detach().to(_WIDER.get(x.dtype, x.dtype), copy=True)


def _takes_the_default(node: fx.Node) -> bool:
    by_number = node.target in {torch.full, torch.arange} and _real((node.args, node.kwargs))
    return "dtype" not in node.kwargs and (node.target in _MADE or by_number)


def _real(tree: Any) -> bool:
    found: list[float] = []
    fx.node.map_aggregate(tree, lambda a: found.append(a) if isinstance(a, float) else None)
    return bool(found)


def _wider(value: Any) -> Any:
    return _WIDER.get(value, value) if isinstance(value, torch.dtype) else value
