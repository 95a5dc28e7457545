"""Norms: the running statistics of batch norms, recomputed on the network as it is now.

They are those of the network's own activations. Of batches ``b`` with ``n_b`` values:
``mean = sum n_b m_b / n``, ``var = sum n_b (v_b + (m_b - mean)^2) / (n - 1)``.

Each norm normalises by its batch's own statistics while the batch passes through, so that deeper layers see repaired
inputs: one pass does for all of them. Batches must therefore be large and mixed; that is what ``generator`` is for. If
all data is one batch, the result is exact.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.nn.modules.batchnorm import _BatchNorm

from fxfuse.errors import DataError
from fxfuse.passes.graphs import attribute
from fxfuse.passes.observe import evaluating, place, to_device
from fxfuse.samples import Samples


@dataclass(slots=True)
class Moments:
    """Count, mean and sum of squared deviations per channel, merged batch by batch (Chan et al.), in float64."""

    count: int = 0
    mean: Tensor | None = None
    squares: Tensor | None = None

    def add(self, x: Tensor, channel: int) -> tuple[Tensor, Tensor]:
        """Take in a batch; returns its own mean and (biased) variance, in its own precision."""
        others = [d for d in range(x.dim()) if d != channel % x.dim()]
        kind = torch.promote_types(x.dtype, torch.float32)
        var, mean = torch.var_mean(x.to(kind), others, correction=0)
        n, m, v = x.numel() // x.shape[channel], mean.double(), var.double()
        if self.mean is None or self.squares is None:
            self.count, self.mean, self.squares = n, m, v * n
        else:
            total = self.count + n
            delta = m - self.mean
            self.mean = self.mean + delta * (n / total)
            self.squares = self.squares + v * n + delta.square() * (self.count * n / total)
            self.count = total
        return mean, var

    def read(self, correction: int) -> tuple[Tensor, Tensor]:
        """Mean and variance of everything so far."""
        assert self.mean is not None
        assert self.squares is not None
        return self.mean, self.squares / max(self.count - correction, 1)


def recompute_norms(
    module: fx.GraphModule,
    samples: Samples,
    *,
    device: torch.device,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> int:
    """Recompute the running statistics of every batch norm of ``module``, in place; returns how many there are.

    The running variance is the unbiased one, as in training; ``num_batches_tracked`` counts the batches. A layer that
    is called several times pools its calls and counts once. Batch norms without running statistics need none. The
    graph runs no further than its last batch norm. Mode, device and parameters stay as they are; a module without
    batch norm is not run at all. ``generator`` shuffles the samples. Raises :class:`DataError` for fewer than two
    samples and for statistics that are not finite (all layers keep their old ones).
    """
    if not _batch_norms(module):
        return 0
    chunks = shuffled_chunks(samples, batch_size, generator)
    with evaluating(module, device):
        found = pool_norms(module, (to_device(samples.take(chunk)[0], device) for chunk in chunks))
        for norm in _batch_norms(module).values():
            if norm.count is not None:
                norm.count.fill_(len(chunks))
    return found


def pool_norms(module: fx.GraphModule, batches: Iterable[Sequence[Tensor]]) -> int:
    """The core of :func:`recompute_norms`: from batches of inputs, for a module in evaluation mode where they lie.

    ``num_batches_tracked`` is left alone. Raises as :func:`recompute_norms` does, and keeps all old statistics then.
    """
    norms = _batch_norms(module)
    if not norms:
        return 0
    kept = [[tensor.clone() for tensor in (norm.mean, norm.var)] for norm in norms.values()]
    runner = Runner(module, before={node: norm.adopt for node, norm in norms.items()})
    with torch.no_grad():
        try:
            for inputs in batches:
                runner.run(*inputs)
            for node, norm in norms.items():
                norm.write(place(node))
        except BaseException:  # an interruption too: statistics half written are worse than the old ones
            for norm, (mean, var) in zip(norms.values(), kept, strict=True):
                norm.mean.copy_(mean)
                norm.var.copy_(var)
            raise
    return len({id(norm.mean) for norm in norms.values()})


@dataclass(frozen=True, slots=True)
class _BatchStatistics:
    """The running statistics that a batch norm reads; calls that share them share ``moments``."""

    mean: Tensor
    var: Tensor
    count: Tensor | None
    moments: Moments

    def adopt(self, x: Tensor) -> None:
        """Take in a batch and make its own statistics those that it is normalised by."""
        mean, var = self.moments.add(x, 1)
        self.mean.copy_(mean)
        self.var.copy_(var)

    def write(self, where: str) -> None:
        """Store the statistics of all batches."""
        mean, var = self.moments.read(correction=1)
        if not bool((mean + var).isfinite().all()):
            raise DataError(
                f"the batch norm at {where} sees infinite or undefined activations, so its statistics cannot be "
                "recomputed; look for such values in the data and in the weights before it"
            )
        self.mean.copy_(mean)
        self.var.copy_(var)


def _batch_norms(module: fx.GraphModule) -> dict[fx.Node, _BatchStatistics]:
    """The batch norms of a graph that use running statistics, called as modules or as functions."""
    found: dict[fx.Node, _BatchStatistics] = {}
    shared: dict[int, Moments] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            layer: Any = module.get_submodule(str(node.target))
            if not isinstance(layer, _BatchNorm):
                continue
            state = (layer.running_mean, layer.running_var, layer.num_batches_tracked)
        elif node.op == "call_function" and node.target is F.batch_norm:
            given = dict(zip(("input", "mean", "var"), node.args, strict=False))
            names = [
                given.get("mean", node.kwargs.get("running_mean")),
                given.get("var", node.kwargs.get("running_var")),
            ]
            if not all(isinstance(x, fx.Node) and x.op == "get_attr" for x in names):
                continue
            state = (*(attribute(module, str(x.target)) for x in names), None)
        else:
            continue
        mean, var, count = state
        if mean is not None and var is not None:
            found[node] = _BatchStatistics(mean, var, count, shared.setdefault(id(mean), Moments()))
    return found


def shuffled_chunks(samples: Samples, size: int, generator: torch.Generator | None) -> list[Tensor]:
    """Batches of nearly equal size, so that no leftover batch has too few samples to tell its statistics."""
    count = len(samples)
    if count < 2:
        raise DataError(f"statistics need at least two samples. Got {count} from {samples.description}")
    order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
    return list(order.tensor_split(-(-count // max(size, 2))))


class Runner(fx.Interpreter):
    """Runs a graph up to the last node of interest, with a look at inputs and a change of outputs on the way."""

    def __init__(
        self,
        module: fx.GraphModule,
        before: Mapping[fx.Node, Callable[[Tensor], None]] | None = None,
        after: Mapping[fx.Node, Callable[[Tensor], Tensor]] | None = None,
    ) -> None:
        super().__init__(module)
        self.before = before or {}
        self.after = after or {}
        self.left = 0

    def run(self, *inputs: Tensor) -> None:  # type: ignore[override]  # the output is of no interest
        """Run as far as needed."""
        self.left = len(self.before) + len(self.after)
        self.env.clear()
        self.args_iter = iter(inputs)
        for node in self.graph.nodes:
            if self.left == 0:
                break
            self.env[node] = self.run_node(node)
            for dead in self.user_to_last_uses.get(node, []):
                del self.env[dead]
        self.env.clear()

    def run_node(self, n: fx.Node) -> Any:
        """One node, with what is to be done before and after it."""
        if n in self.before:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            self.before[n](args[0] if args else kwargs["input"])
            self.left -= 1
        value = super().run_node(n)
        if n in self.after:
            value = self.after[n](value)
            self.left -= 1
        return value
