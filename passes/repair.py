"""Repair: bring back the means and deviations of activations that merging has changed.

Merged neurons are means of neurons that agree only in part, so their activations vary less than the parents' did, the
more so the deeper they lie (Jordan et al., *REPAIR*). Where a batch norm follows, its statistics are recomputed
(``norms.py``). Elsewhere channel ``j`` of a layer's output, of mean ``m_j`` and deviation ``s_j``, is moved to the
parents' ``mu_j = sum_p M_p[j, i] mean_p[i]`` and ``sigma_j`` likewise (``M`` the merge matrices of the grouping):

    weight_j <- r_j weight_j,    bias_j <- r_j (bias_j - m_j) + mu_j,    r_j = sigma_j / s_j

As with batch norms, each layer is corrected by its batch's own statistics while the batch passes through: one pass does
for all layers, batches must be large and mixed, and the result is exact where all data is one batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from fxfuse.errors import DataError
from fxfuse.layouts import merge_tensors, spaces_in
from fxfuse.passes.graphs import attribute
from fxfuse.passes.norms import Moments, Runner, shuffled_chunks
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
    chunks = shuffled_chunks(samples, batch_size, generator)
    aims = _aims(layers, parents, axes, groupings, weights, samples, chunks, device)
    with evaluating(module, device), torch.no_grad():
        layers = _rescalable(module, axes)  # where they are now
        targets = {node: _Target(layer, *aims[node.name], Moments()) for node, layer in layers.items()}
        runner = Runner(module, after={node: target.correct for node, target in targets.items()})
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
