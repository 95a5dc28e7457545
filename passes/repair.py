"""Repair: bring back the statistics of activations that merging has changed.

Merged neurons are means of neurons that agree only in part, so their activations vary less than the parents' did, the
more so the deeper they lie (Jordan et al., *REPAIR*). Two cures, one pass over the data each:

- **batch norm**: running mean and variance are those of the fused network's own activations.
  Of batches ``b`` with ``n_b`` values: ``mean = sum n_b m_b / n``, ``var = sum n_b (v_b + (m_b - mean)^2) / (n - 1)``
- **no norm**: channel ``j`` of a layer's output, of mean ``m_j`` and deviation ``s_j``, is moved to the parents'
  ``mu_j = sum_p M_p[j, i] mean_p[i]`` and ``sigma_j`` likewise (``M`` the merge matrices of the grouping):
  ``weight_j <- r_j weight_j``,  ``bias_j <- r_j (bias_j - m_j) + mu_j``,  ``r_j = sigma_j / s_j``.

In both, each layer is corrected by its batch's own statistics while the batch passes through, so that deeper layers see
repaired inputs: one pass does for all layers. Batches must therefore be large and mixed; that is what ``generator`` is
for. If all data is one batch, the result is exact.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from fxfuse.errors import DataError
from fxfuse.layouts import merge_tensors, spaces_in
from fxfuse.passes.graphs import attribute
from fxfuse.passes.observe import Observer, evaluating, place, to_device
from fxfuse.samples import Samples
from fxfuse.types import Analysis, Axes, Grouping, TensorAxes

TINY = 1e-3
"""A channel that varies less than this part of the layer's mean deviation is as good as dead and keeps its scale."""

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FUNCTIONS = (F.linear, F.conv1d, F.conv2d, F.conv3d)
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_NORM_FUNCTIONS = (F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm, F.rms_norm)


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
    chunks = _chunks(samples, batch_size, generator)
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
    runner = _Runner(module, before={node: norm.adopt for node, norm in norms.items()})
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


def _chunks(samples: Samples, size: int, generator: torch.Generator | None) -> list[Tensor]:
    """Batches of nearly equal size, so that no leftover batch has too few samples to tell its statistics."""
    count = len(samples)
    if count < 2:
        raise DataError(f"statistics need at least two samples. Got {count} from {samples.description}")
    order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
    return list(order.tensor_split(-(-count // max(size, 2))))


class _Runner(fx.Interpreter):
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


# ---------------------------------------------------------------------------------------------------- rescale


@dataclass(frozen=True, slots=True)
class _Layer:
    """A node that multiplies by a weight, as a module or as a function, with the tensors that it alone reads.

    ``channel`` is the dimension of its value that indexes channels; ``groups`` is given for a transposed convolution,
    whose weight is (inputs x outputs of one group), the groups along the inputs.
    """

    weight: Tensor
    bias: Tensor | None
    channel: int
    groups: int | None = None

    def scale(self, factor: Tensor, shift: Tensor) -> None:
        """Make the output ``factor * output + shift``, per channel."""
        factor, shift = factor.to(self.weight), shift.to(self.weight)
        if self.groups is not None:
            inputs, outputs = self.weight.shape[:2]
            shape = (self.groups, inputs // self.groups, outputs, -1)
            self.weight.copy_((self.weight.reshape(shape) * factor.view(self.groups, 1, -1, 1)).view_as(self.weight))
        else:
            self.weight.mul_(factor.view(-1, *[1] * (self.weight.dim() - 1)))
        if self.bias is not None:
            self.bias.mul_(factor).add_(shift)


@dataclass(frozen=True, slots=True)
class _Target:
    """A layer to rescale: what its channels should be, and what they are."""

    layer: _Layer
    mean: Tensor
    deviation: Tensor
    moments: Moments

    def correct(self, y: Tensor) -> Tensor:
        """The layer's output with the batch's statistics moved to the target's."""
        mean, var = self.moments.add(y, self.layer.channel)
        shape = [1] * y.dim()
        shape[self.layer.channel] = -1
        factor, shift = self.affine(mean, var)
        return y * factor.to(y).view(shape) + shift.to(y).view(shape)

    def affine(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """``r`` and ``mu - r m``; without a bias to hold it, there is no shift."""
        own = var.sqrt().to(self.deviation)
        alive = own > TINY * own.mean()
        factor = torch.where(alive, self.deviation / own.where(alive, torch.ones_like(own)), torch.ones_like(own))
        shift = self.mean - factor * mean.to(self.mean)
        return factor, shift if self.layer.bias is not None else torch.zeros_like(shift)

    def fold(self) -> None:
        """Write the correction into the layer."""
        self.layer.scale(*self.affine(*self.moments.read(correction=0)))


def rescale(
    module: fx.GraphModule,
    parents: Sequence[Analysis],
    axes: Axes,
    groupings: Mapping[int, Grouping],
    weights: tuple[float, ...],
    samples: Samples,
    *,
    device: torch.device,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> int:
    """Rescale linear and convolution layers to the parents' means and deviations, in place; returns how many.

    ``module`` is the rewritten network, ``axes`` what its dimensions mean, ``parents`` its parents in its words (node
    names and space numbers). Left alone: layers that a norm reads (it undoes what is done here), layers whose outputs
    are pinned, layers that are called or whose weights are read more than once. A layer without bias gets its
    deviation only. The same samples in the same order go through the parents and the network. Raises
    :class:`DataError` for fewer than two samples and activations that are not finite.
    """
    layers = _rescalable(module, axes)
    if not layers:
        return 0
    chunks = _chunks(samples, batch_size, generator)
    aims = _aims(layers, parents, axes, groupings, weights, samples, chunks, device)
    with evaluating(module, device), torch.no_grad():
        layers = _rescalable(module, axes)  # where they are now
        targets = {node: _Target(layer, *aims[node.name], Moments()) for node, layer in layers.items()}
        runner = _Runner(module, after={node: target.correct for node, target in targets.items()})
        for chunk in chunks:
            runner.run(*to_device(samples.take(chunk)[0], device))
        for node, target in targets.items():
            if not all(bool(x.isfinite().all()) for x in target.moments.read(correction=0)):
                raise DataError(f"the fused network has infinite or undefined activations at {place(node)}")
        for target in targets.values():
            target.fold()
    return len(targets)


def _rescalable(module: fx.GraphModule, axes: Axes) -> dict[fx.Node, _Layer]:
    readers: dict[int, int] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            for parameter in module.get_submodule(str(node.target)).parameters():
                readers[id(parameter)] = readers.get(id(parameter), 0) + 1
        elif node.op == "get_attr":
            value = attribute(module, str(node.target))
            readers[id(value)] = readers.get(id(value), 0) + len(node.users)
    found: dict[fx.Node, _Layer] = {}
    for node in module.graph.nodes:
        layer = _layer(module, node)
        meaning = axes.values.get(node.name)
        if layer is None or meaning is None or not spaces_in(meaning.dims[layer.channel]):
            continue
        alone = all(readers[id(t)] == 1 for t in (layer.weight, layer.bias) if t is not None)
        if alone and not any(_is_norm(module, user) for user in node.users):
            found[node] = layer
    return found


def _layer(module: fx.GraphModule, node: fx.Node) -> _Layer | None:
    if node.op == "call_module":
        part: Any = module.get_submodule(str(node.target))
        if not isinstance(part, _LAYERS):
            return None
        groups = part.groups if isinstance(part, _TRANSPOSED) else None
        return _Layer(part.weight, part.bias, -1 if isinstance(part, nn.Linear) else 1, groups)
    if node.op != "call_function" or node.target not in _FUNCTIONS:
        return None
    given = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | dict(node.kwargs)
    state = [given.get("weight"), given.get("bias")]
    if not all(x is None or (isinstance(x, fx.Node) and x.op == "get_attr") for x in state):
        return None  # a computed weight: nothing to write the correction into
    weight, bias = (attribute(module, str(x.target)) if isinstance(x, fx.Node) else None for x in state)
    return None if weight is None else _Layer(weight, bias, -1 if node.target is F.linear else 1)


def _is_norm(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), _NORMS)
    return node.op == "call_function" and node.target in _NORM_FUNCTIONS


def _aims(
    layers: Mapping[fx.Node, _Layer],
    parents: Sequence[Analysis],
    axes: Axes,
    groupings: Mapping[int, Grouping],
    weights: tuple[float, ...],
    samples: Samples,
    chunks: list[Tensor],
    device: torch.device,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Per layer the parents' means and deviations, merged as its neurons are."""
    channels = {node.name: layer.channel for node, layer in layers.items()}
    found: dict[str, list[Moments]] = {name: [Moments() for _ in parents] for name in channels}
    observers = [Observer(parent.program, channels, device) for parent in parents]
    for chunk in chunks:
        inputs = to_device(samples.take(chunk)[0], device)
        for p, observer in enumerate(observers):

            def visit(name: str, value: Tensor, p: int = p) -> None:
                found[name][p].add(value, channels[name])

            observer.observe(inputs, visit)
            observer.check_finite()
    aims: dict[str, tuple[Tensor, Tensor]] = {}
    for name, channel in channels.items():
        meanings = [TensorAxes((parent.axes.values[name].dims[channel],)) for parent in parents]
        read = [moments.read(correction=0) for moments in found[name]]
        means = [mean.cpu() for mean, _ in read]
        deviations = [var.sqrt().cpu() for _, var in read]
        merged = [merge_tensors(x, meanings, axes.spaces, groupings, weights) for x in (means, deviations)]
        aims[name] = (merged[0].to(device), merged[1].to(device))
    return aims
