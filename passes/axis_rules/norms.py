"""Normalisation: statistics treat the elements of the reduced dimensions alike; scale and shift are per neuron."""

from fxfuse.passes.algebra import free_of, regroup, unify, unify_all
from fxfuse.passes.axis_rules.core import Call, axis_rule
from fxfuse.passes.variables import Dim, Dims, expand, fresh, pin, size_of


def _per_channel(call: Call, channel: Dim, *names: str) -> None:
    for name in names:
        tensor = call.named(name)
        if tensor is not None:
            dims = call.of(tensor)
            if dims and dims[0]:
                unify(channel, dims[0])


@axis_rule(
    "batch_norm", "native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit", "instance_norm",
    "_native_batch_norm_legit_no_training", "_batch_norm_with_update", "_native_batch_norm_legit_functional",
    "_batch_norm_no_update",
)  # fmt: skip
def batch_norm(call: Call) -> Dims | list[Dims]:
    """Per channel, dimension 1."""
    x = call.dims(0)
    channel = x[1] if len(x) > 1 else x[0]
    _per_channel(call, channel, "weight", "bias", "running_mean", "running_var")
    free_of(x[:2], x[2:])
    if "instance" not in call.function._schema.name:
        free_of(x[1:2], x[:1])  # statistics of the batch mix its indices
    x = [expand(dim) for dim in x]
    if isinstance(call.result, tuple | list):
        return [x, *([x[1]] if r.ndim == 1 and r.numel() else [fresh(n, pinned=True) for n in r.shape]
                     for r in call.result[1:])]  # fmt: skip
    return x


@axis_rule("layer_norm", "rms_norm", "_fused_rms_norm", "native_layer_norm")
def layer_norm(call: Call) -> Dims | list[Dims]:
    """Over the last dimensions, with a scale and shift of their shape."""
    x = call.dims(0)
    count = len(call.args[1])
    for name in ("weight", "bias"):
        tensor = call.named(name)
        if tensor is not None:
            unify_all(zip(x[-count:], call.of(tensor), strict=True))
    free_of(x[:-count], x[-count:])
    x = [expand(dim) for dim in x]
    if isinstance(call.result, tuple | list):
        return [x, *[[*x[:-count], *([[]] * count)] for _ in call.result[1:]]]
    return x


@axis_rule("group_norm", "native_group_norm")
def group_norm(call: Call) -> Dims | list[Dims]:
    """Groups may change places as wholes, and channels inside each group."""
    x = call.dims(0)
    groups = call.args[1] if call.function._schema.name == "aten::group_norm" else call.named("group")
    if groups not in (1, size_of(x[1])):
        pieces = regroup(x[1], [groups, size_of(x[1]) // groups])
        if pieces is None:
            pin(x[1])
        else:
            free_of([x[0], pieces[0]], [pieces[1]])
    elif groups == 1:
        free_of([x[0]], [x[1]])
    _per_channel(call, expand(x[1]), "weight", "bias")
    free_of(x[:2], x[2:])
    x = [expand(dim) for dim in x]
    if isinstance(call.result, tuple | list):
        return [x, *[[x[0], fresh(groups, pinned=True)] for _ in call.result[1:]]]
    return x
