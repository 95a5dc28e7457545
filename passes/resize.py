"""The same graph with other numbers of neurons: the target of a fusion that asks for another width."""

import copy
from collections.abc import Collection, Mapping
from dataclasses import replace

from torch import Tensor, nn

from fxfuse.errors import MethodError
from fxfuse.layouts import resized, spaces_in
from fxfuse.passes.abstract import on_meta
from fxfuse.passes.shapes import meta_shapes, value_shapes
from fxfuse.passes.subgraph import output_nodes
from fxfuse.types import Analysis, TensorAxes


def scale(analysis: Analysis, factor: float, fixed: Collection[int] = ()) -> Analysis:
    """``analysis`` for a network whose spaces have ``factor`` times as many neurons, at least 1, where its code allows.

    Of a space and the spaces inside it one keeps its size: heads keep their number and become wider; where the inner
    size is a number in the code (the pieces of a maxout unit), the owners become more instead. What cannot be scaled
    by itself either keeps its size, and the program's notes say so; spaces in ``fixed`` keep theirs. Raises
    ``MethodError`` unless ``factor`` is positive and some space can be scaled.
    """
    if not factor > 0:
        raise MethodError(f"target width must be a positive factor. Got {factor!r}.")
    own = {s.id: s.size for s in analysis.axes.spaces}
    wanted = {s.id: s.size if s.id in fixed else max(1, round(s.size * factor)) for s in analysis.axes.spaces}
    owners = {s.outer for s in analysis.axes.spaces}
    preferred = {s: n if s in owners else wanted[s] for s, n in own.items()}
    reason = _misfit(analysis, preferred)
    if reason is None:
        return resize(analysis, preferred)
    sizes = dict(own)
    for outermost in (s for s in analysis.axes.spaces if s.outer is None):
        inner = {s.id for s in analysis.axes.spaces if s.outer == outermost.id}
        for chosen in (inner, {outermost.id}) if inner else ({outermost.id},):
            trial = {s: wanted[s] if s in chosen else n for s, n in sizes.items()}
            if _misfit(analysis, trial) is None:
                sizes = trial
                break
    kept = [s.name for s in analysis.axes.spaces if sizes[s.id] == s.size != wanted[s.id] and s.outer is None]
    if sizes == own and own != wanted:
        raise _cannot(analysis, reason)
    scaled, notes = resize(analysis, sizes), analysis.program.notes
    if kept:
        notes = (*notes, f"widths that are numbers in the model's code stay as they are: {', '.join(kept)}")
    return replace(scaled, program=replace(scaled.program, notes=notes))


def resize(analysis: Analysis, sizes: Mapping[int, int]) -> Analysis:
    """``analysis`` for a network with ``sizes[space]`` neurons; its parameters are empty and wait to be written.

    Raises ``MethodError`` if the graph has a size baked in that does not follow, or memory does not suffice.
    """
    resized_one = _rebuilt(analysis, sizes)
    reason = _wrong_value(resized_one)
    if reason is not None:
        raise _cannot(analysis, reason)
    return resized_one


def _misfit(analysis: Analysis, sizes: Mapping[int, int]) -> str | None:
    """Why the graph cannot have these sizes, if it cannot; nothing large is made to find out."""
    return _wrong_value(_rebuilt(weightless(analysis), sizes))


def weightless(analysis: Analysis) -> Analysis:
    """The same on meta tensors: to see what becomes of other sizes without making anything large."""
    return replace(analysis, program=replace(analysis.program, module=on_meta(analysis.program.module)))


def _wrong_value(analysis: Analysis) -> str | None:
    """The first thing about the values that is not as the axes say."""
    meta = any(p.is_meta for p in analysis.program.module.parameters())
    try:
        shapes = (meta_shapes if meta else value_shapes)(analysis.program)
    except Exception as error:  # whatever an operator says of sizes that do not fit
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    outputs = {node.name for node in output_nodes(analysis.program.module.graph)}
    for node, meaning in analysis.axes.values.items():
        # Constants that follow a width (an initial state of zeros) are not neurons; an output must stay as it is.
        sizes = [layout.size if node in outputs or spaces_in(layout) else None for layout in meaning.dims]
        shape = shapes.get(node)
        if shape is not None and any(n not in (None, m) for n, m in zip(sizes, shape, strict=True)):
            return f"{node} has the shape {list(shape)} where {[layout.size for layout in meaning.dims]} would be right"
    return None


def _cannot(analysis: Analysis, reason: str) -> MethodError:
    return MethodError(
        f"{analysis.program.name} cannot be built at the requested width: {reason} "
        "(a size is written as a number in the model's code). Give a target architecture instead of a factor."
    )


def _zeros(like: Tensor, shape: list[int], name: str) -> Tensor:
    try:
        return like.new_zeros(shape)
    except (RuntimeError, MemoryError) as error:  # what torch says of an allocation that fails
        size = " x ".join(map(str, shape))
        raise MethodError(f"{name} of {size} does not fit into memory; take a smaller target") from error


def _rebuilt(analysis: Analysis, sizes: Mapping[int, int]) -> Analysis:
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
            fresh = replaced.setdefault(id(old), nn.Parameter(_zeros(old, shape, name), old.requires_grad))
            setattr(holder, key, fresh)
        else:
            setattr(holder, key, old.new_ones(shape))
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
    return Analysis(replace(analysis.program, module=module), axes, analysis.partition)


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
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        known = module.weight if module.running_mean is None else module.running_mean
        module.num_features = module.num_features if known is None else known.shape[0]
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and weight is not None:
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.GroupNorm) and weight is not None:
        module.num_channels = weight.shape[0]
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.RNNBase):
        gates, packed = {"LSTM": 4, "GRU": 3}.get(module.mode, 1), module.get_parameter("weight_ih_l0")
        module.input_size, module.hidden_size = packed.shape[1], packed.shape[0] // gates
        if not packed.is_meta:
            module.flatten_parameters()
