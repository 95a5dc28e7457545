"""DeepLIFT's rescale rule (Shrikumar et al., 2017), for all observed values in one backward pass.

A reference input, here 0, gives every value ``h`` a reference ``h0``. The attribution of ``h`` is its difference from
the reference times a multiplier,

    C = m (h - h0),        m = dF/dh  with the slope of every nonlinearity f replaced by  (f(x) - f(x0)) / (x - x0),

so the attributions of a layer sum to ``F(x) - F(x0)`` where only pointwise nonlinearities and max pooling lie behind
it. Where ``x = x0`` the slope stays. The maximum of a window is shared out as the paper's code and captum do: with
``y, y0`` the outputs, what ``max(y, y0)`` is above ``y0`` goes to the entry that is largest at ``x``, and the rest to
the one that is largest at ``x0``. Everything else (norms, attention, products of values) keeps its gradient.

No hook is needed: a nonlinearity is replaced, on the way forward, by the line through the two points, which has the
nonlinearity's value and the secant's slope.
"""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxfuse.passes.observe import Observer

EPS = 1e-10
"""Differences from the reference below which a slope stays a slope."""

POINTWISE = frozenset(
    {
        "abs", "celu", "clamp", "elu", "erf", "exp", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leakyrelu", "log",
        "log1p", "logsigmoid", "mish", "relu", "relu6", "rsqrt", "selu", "sigmoid", "silu", "softplus", "sqrt",
        "square", "tanh",
    }
)  # fmt: skip
"""Nonlinearities of one value, by name without underscores."""

POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


class Secants:
    """What happens at the nodes of a graph: the first run notes the reference, the second replaces slopes."""

    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self._reference: dict[str, tuple[Tensor, Tensor]] = {}
        self._noting = True

    def replace_slopes(self) -> None:
        """From here on runs are at the sample, not at the reference."""
        self._noting = False

    def __call__(self, node: fx.Node, value: Any, source: Any) -> Any:
        """The value of a node whose only input's value is ``source``, with another slope."""
        name = self._name(node)
        pooled = name in ("maxpool1d", "maxpool2d", "maxpool3d") and node.op == "call_module"
        if not (name in POINTWISE or pooled) or not isinstance(value, Tensor) or not isinstance(source, Tensor):
            return value
        if self._noting:
            self._reference[node.name] = (source.detach(), value.detach())
            return value
        before, after = self._reference[node.name]
        if pooled:
            return _pooled(self._module.get_submodule(str(node.target)), source, value, before, after)
        return _line(source, value, before, after) if value.shape == source.shape else value

    def _name(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return type(self._module.get_submodule(str(node.target))).__name__.lower()
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        return name.split(".")[0].replace("_", "").lower()


def _line(x: Tensor, y: Tensor, x0: Tensor, y0: Tensor) -> Tensor:
    """``y`` with the slope of the line from ``(x0, y0)`` to ``(x, y)``."""
    step = (x - x0).detach()
    apart = step.abs() >= EPS
    slope = (y.detach() - y0) / torch.where(apart, step, 1.0)
    return torch.where(apart, y.detach() + slope * (x - x.detach()), y)


def _pooled(pool: nn.Module, x: Tensor, y: Tensor, x0: Tensor, y0: Tensor) -> Tensor:
    """The maximum of windows, with the multipliers of the module's docstring."""
    flat, change = x.flatten(2), (x - x0).detach().flatten(2)
    total = y.detach().flatten(2)
    most = torch.maximum(y.detach(), y0)
    shares = ((x.detach(), most - y0, 1.0), (x0, y.detach() - most, 0.0))
    for values, rise, plain in shares:
        index = _winners(pool, values).flatten(2)
        step = change.gather(2, index)
        apart = step.abs() >= EPS
        slope = torch.where(apart, rise.flatten(2) / torch.where(apart, step, 1.0), plain)
        chosen = flat.gather(2, index)
        total = total + slope * (chosen - chosen.detach())
    return total.reshape(y.shape)


def _winners(pool: nn.Module, x: Tensor) -> Tensor:
    options = {key: getattr(pool, key) for key in ("kernel_size", "stride", "padding", "dilation", "ceil_mode")}
    index: Tensor = POOLS[x.ndim - 2](x, **options, return_indices=True)[1]
    return index


def reference_values(observer: Observer, inputs: tuple[Tensor, ...]) -> tuple[Secants, dict[str, Tensor]]:
    """Run the network on the reference: zero where inputs are floating point. Its observed values, and the secants."""
    secants = Secants(observer.module)  # type: ignore[arg-type]  # the interpreter's module is the graph's
    found: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> None:
        found[name] = value.detach()

    zeros = tuple(torch.zeros_like(x) if x.is_floating_point() else x for x in inputs)
    observer.observe(zeros, keep, rule=secants)
    secants.replace_slopes()
    return secants, found
