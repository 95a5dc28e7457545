"""The same graph with other numbers of neurons: the target of a fusion that asks for another width."""

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import fx, nn

from fxfuse.errors import MethodError
from fxfuse.layouts import resized
from fxfuse.types import Analysis, Axes, TensorAxes


def scaled_sizes(axes: Axes, factor: float) -> dict[int, int]:
    """Sizes of all spaces times ``factor``, at least 1. A space that owns others (heads, groups) keeps its number: its
    blocks change width instead. Raises ``MethodError`` unless ``factor`` is positive."""
    if not factor > 0:
        raise MethodError(f"target width must be a positive factor. Got {factor!r}.")
    owners = {space.outer for space in axes.spaces}
    return {s.id: s.size if s.id in owners else max(1, round(s.size * factor)) for s in axes.spaces}


def resize(analysis: Analysis, sizes: Mapping[int, int]) -> Analysis:
    """``analysis`` for a network with ``sizes[space]`` neurons; its parameters are empty and wait to be written.

    Raises ``MethodError`` if the graph has a size baked in that does not follow.
    """
    module = copy.deepcopy(analysis.program.module)
    state = {
        name: TensorAxes(tuple(resized(layout, sizes) for layout in meaning.dims), meaning.reads)
        for name, meaning in analysis.axes.state.items()
    }
    replaced: dict[int, nn.Parameter] = {}
    for name, meaning in state.items():
        owner, _, key = name.rpartition(".")
        holder = module.get_submodule(owner)
        shape = [layout.size for layout in meaning.dims]
        old = getattr(holder, key)
        if list(old.shape) == shape:
            continue
        if isinstance(old, nn.Parameter):
            fresh = replaced.setdefault(id(old), nn.Parameter(torch.zeros(shape, dtype=old.dtype), old.requires_grad))
            setattr(holder, key, fresh)
        else:
            setattr(holder, key, torch.ones(shape, dtype=old.dtype))
    for child in module.modules():
        _describe(child)
    axes = replace(
        analysis.axes,
        spaces=tuple(replace(s, size=sizes[s.id]) for s in analysis.axes.spaces),
        state=state,
        values={
            node: TensorAxes(tuple(resized(layout, sizes) for layout in meaning.dims), meaning.reads)
            for node, meaning in analysis.axes.values.items()
        },
    )
    program = replace(analysis.program, module=module)
    _check(program.module, analysis)
    return Analysis(program, axes, analysis.partition)


def _describe(module: nn.Module) -> None:
    """Let a torch.nn module's own account of its sizes follow its parameters."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Bilinear):
        module.out_features, module.in1_features, module.in2_features = module.weight.shape
    elif isinstance(module, nn.modules.conv._ConvTransposeNd):
        module.in_channels, module.out_channels = module.weight.shape[0], module.weight.shape[1] * module.groups
    elif isinstance(module, nn.modules.conv._ConvNd):
        depthwise = module.groups == module.in_channels and module.weight.shape[1] == 1
        module.groups = module.weight.shape[0] if depthwise and module.groups > 1 else module.groups
        module.out_channels, module.in_channels = module.weight.shape[0], module.weight.shape[1] * module.groups
    elif isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
        module.num_features = module.running_mean.shape[0]
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and weight is not None:
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.GroupNorm) and weight is not None:
        module.num_channels = weight.shape[0]
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.RNNBase):
        gates, packed = {"LSTM": 4, "GRU": 3}.get(module.mode, 1), module.get_parameter("weight_ih_l0")
        module.input_size, module.hidden_size = packed.shape[1], packed.shape[0] // gates
        module.flatten_parameters()


def _check(module: fx.GraphModule, analysis: Analysis) -> None:
    try:
        with torch.no_grad():
            module(*analysis.program.example)
    except Exception as error:
        raise MethodError(
            f"{analysis.program.name} cannot be built at the requested width: {str(error).splitlines()[0]} "
            "(a size is written as a number in the model's code). Give a target architecture instead of a factor."
        ) from error
