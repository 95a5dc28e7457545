"""Respell aten operators as the functions that people write.

Each entry takes the operator's arguments by their schema names (defaults filled in) and says which function with which
arguments is the same. Operators without an entry stay as they are; they run, train and export like any other.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxfuse.passes.graphs import words
from fxfuse.passes.probing import PROBE, Editor

Call = tuple[Any, tuple[Any, ...], dict[str, Any]]
Arguments = dict[str, Any]


def respell_aten(module: fx.GraphModule) -> int:
    """Replace aten operators by functions of ``torch`` and ``torch.nn.functional``, by methods and by operators."""
    edit = Editor(module)
    changes = 0
    for node in list(module.graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target.namespace != "aten":
            continue
        call = respelled(node)
        if call is None:
            continue
        target, args, kwargs = call
        node.op = "call_method" if isinstance(target, str) else "call_function"
        node.target, node.args, node.kwargs = target, args, kwargs
        _follow_device(edit, node)
        changes += 1
    return changes


def respelled(node: fx.Node) -> Call | None:
    """The function call that equals an aten call; ``None`` if the table has none."""
    target: Any = node.target
    name = target._schema.name.split("::")[1]
    arguments = _by_name(target, node)
    entry = TABLE.get(f"{name}.{target._overloadname}") or TABLE.get(name)
    if entry is not None:
        return entry(arguments)
    if name in _ALIKE:
        return _ALIKE[name], node.args, {k: v for k, v in node.kwargs.items() if v is not None}
    return None


def _by_name(target: Any, node: fx.Node) -> Arguments:
    result: Arguments = {}
    for position, argument in enumerate(target._schema.arguments):
        if argument.name in node.kwargs:
            result[argument.name] = node.kwargs[argument.name]
        elif position < len(node.args) and not argument.kwarg_only:
            result[argument.name] = node.args[position]
        else:
            result[argument.name] = argument.default_value
    return result


def _plainly(target: Any, *names: str, **renamed: str) -> Callable[[Arguments], Call]:
    """``target`` with the named arguments in order; ``renamed`` become keyword arguments unless they are ``None``."""

    def entry(a: Arguments) -> Call:
        kwargs = {new: a[old] for new, old in renamed.items() if a[old] is not None}
        return target, tuple(a[name] for name in names), kwargs

    return entry


def _arithmetic(target: Any, scaled: Any = None) -> Callable[[Arguments], Call | None]:
    def entry(a: Arguments) -> Call | None:
        if a.get("alpha", 1) != 1:
            return scaled, (a["self"], a["other"]), {"alpha": a["alpha"]}
        if a.get("rounding_mode") is not None:
            return torch.div, (a["self"], a["other"]), {"rounding_mode": a["rounding_mode"]}
        return target, (a["self"], a["other"]), {}

    return entry


def _rank(a: Arguments) -> int:
    return int(a["self"].meta[PROBE][0].dim())


def _slice(a: Arguments) -> Call:
    stop = None if isinstance(a["end"], int) and a["end"] >= 2**62 else a["end"]
    start = None if a["start"] == 0 else a["start"]
    step = None if a["step"] == 1 else a["step"]
    rank = _rank(a)
    return operator.getitem, (a["self"], (*[slice(None)] * (a["dim"] % rank), slice(start, stop, step))), {}


def _select(a: Arguments) -> Call:
    rank = _rank(a)
    return operator.getitem, (a["self"], (*[slice(None)] * (a["dim"] % rank), a["index"])), {}


def _index(a: Arguments) -> Call:
    return operator.getitem, (a["self"], tuple(slice(None) if i is None else i for i in a["indices"])), {}


def _batch_norm(a: Arguments) -> Call:
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    return F.batch_norm, tuple(a[n] for n in names), {}


def _embedding(a: Arguments) -> Call:
    padding = a["padding_idx"]
    return F.embedding, (a["indices"], a["weight"], None if padding == -1 else padding), {}


def _softmax(target: Any) -> Callable[[Arguments], Call]:
    def entry(a: Arguments) -> Call:
        kwargs = {"dim": a["dim"]} | ({"dtype": a["dtype"]} if isinstance(a.get("dtype"), torch.dtype) else {})
        return target, (a["self"],), kwargs

    return entry


def _to(a: Arguments) -> Call:
    source = a["self"].meta[PROBE][0]
    dtype = a.get("dtype")
    if dtype is None and isinstance(a.get("other"), fx.Node):
        return "type_as", (a["self"], a["other"]), {}
    return "to", (a["self"], dtype if dtype is not None else source.dtype), {}


def _clone(a: Arguments) -> Call:
    return "contiguous" if a.get("memory_format") is torch.contiguous_format else torch.clone, (a["self"],), {}


def _factory(target: Any, *names: str) -> Callable[[Arguments], Call]:
    def entry(a: Arguments) -> Call:
        args = tuple(tuple(a[n]) if isinstance(a[n], list) else a[n] for n in names)
        kwargs = {k: a[k] for k in ("dtype", "device") if a.get(k) is not None}
        return target, args, kwargs

    return entry


def _like(target: Any, *names: str) -> Callable[[Arguments], Call]:
    def entry(a: Arguments) -> Call:
        return target, tuple(a[n] for n in names), {"dtype": a["dtype"]} if a.get("dtype") is not None else {}

    return entry


def _new(name: str) -> Callable[[Arguments], Call]:
    def entry(a: Arguments) -> Call:
        args = (a["self"], tuple(a["size"]), *((a["fill_value"],) if "fill_value" in a else ()))
        return name, args, {"dtype": a["dtype"]} if a.get("dtype") is not None else {}

    return entry


def _attention(a: Arguments) -> Call:
    kwargs = {k: a[k] for k in ("attn_mask", "is_causal", "scale", "enable_gqa") if a.get(k) not in (None, False)}
    return F.scaled_dot_product_attention, (a["query"], a["key"], a["value"]), kwargs


def _pow(a: Arguments) -> Call:
    return operator.pow, (a["self"], a["exponent"]), {}


def _reduction(target: Any) -> Callable[[Arguments], Call]:
    def entry(a: Arguments) -> Call:
        dim = a.get("dim")
        dim = tuple(dim) if isinstance(dim, list | tuple) else dim
        args = (a["self"],) if dim is None else (a["self"], dim)
        kwargs = {"keepdim": True} if a.get("keepdim") else {}
        if a.get("dtype") is not None:
            kwargs["dtype"] = a["dtype"]
        return target, args, kwargs

    return entry


def _sizes(target: Any, name: str) -> Callable[[Arguments], Call]:
    def entry(a: Arguments) -> Call:
        return target, (a["self"], tuple(a[name])), {}

    return entry


def _interpolate(mode: str) -> Callable[[Arguments], Call]:
    def entry(a: Arguments) -> Call:
        kwargs: dict[str, Any] = {"mode": mode}
        size = a.get("output_size")
        kwargs |= {"size": tuple(size)} if size is not None else {"scale_factor": tuple(a["scale_factors"])}
        if mode != "nearest":
            kwargs["align_corners"] = a["align_corners"]
        return F.interpolate, (a["input"],), kwargs

    return entry


def _unary(target: Any) -> Callable[[Arguments], Call]:
    return _plainly(target, "self")


_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CONV_T = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")

TABLE: dict[str, Callable[[Arguments], Call | None]] = {
    "linear": _plainly(F.linear, "input", "weight", "bias"),
    "conv1d": _plainly(F.conv1d, *_CONV),
    "conv2d": _plainly(F.conv2d, *_CONV),
    "conv3d": _plainly(F.conv3d, *_CONV),
    "conv_transpose1d": _plainly(F.conv_transpose1d, *_CONV_T),
    "conv_transpose2d": _plainly(F.conv_transpose2d, *_CONV_T),
    "conv_transpose3d": _plainly(F.conv_transpose3d, *_CONV_T),
    "batch_norm": _batch_norm,
    "layer_norm": _plainly(F.layer_norm, "input", "normalized_shape", "weight", "bias", "eps"),
    "rms_norm": _plainly(F.rms_norm, "input", "normalized_shape", "weight", "eps"),
    "group_norm": _plainly(F.group_norm, "input", "num_groups", "weight", "bias", "eps"),
    "embedding": _embedding,
    "prelu": _plainly(F.prelu, "self", "weight"),
    "scaled_dot_product_attention": _attention,
    "dropout": _plainly(F.dropout, "input", "p", "train"),
    "feature_dropout": _plainly(F.dropout2d, "input", "p", "train"),
    "alpha_dropout": _plainly(F.alpha_dropout, "input", "p", "train"),
    "relu": _unary(F.relu),
    "relu6": _unary(F.relu6),
    "sigmoid": _unary(torch.sigmoid),
    "tanh": _unary(torch.tanh),
    "silu": _unary(F.silu),
    "mish": _unary(F.mish),
    "hardswish": _unary(F.hardswish),
    "hardsigmoid": _unary(F.hardsigmoid),
    "gelu": lambda a: (F.gelu, (a["self"],), {"approximate": a["approximate"]} if a["approximate"] != "none" else {}),
    "leaky_relu": _plainly(F.leaky_relu, "self", "negative_slope"),
    "hardtanh": _plainly(F.hardtanh, "self", "min_val", "max_val"),
    "softplus": _plainly(F.softplus, "self", "beta", "threshold"),
    "softmax.int": _softmax(F.softmax),
    "_softmax": _softmax(F.softmax),
    "log_softmax.int": _softmax(F.log_softmax),
    "add.Tensor": _arithmetic(operator.add, torch.add),
    "sub.Tensor": _arithmetic(operator.sub, torch.sub),
    "add.Scalar": _arithmetic(operator.add, torch.add),
    "sub.Scalar": _arithmetic(operator.sub, torch.sub),
    "rsub.Scalar": lambda a: (operator.sub, (a["other"], a["self"]), {}) if a["alpha"] == 1 else None,
    "mul": _arithmetic(operator.mul),
    "div": _arithmetic(operator.truediv),
    "floor_divide": _arithmetic(operator.floordiv),
    "matmul": _plainly(torch.matmul, "self", "other"),
    "neg": _unary(operator.neg),
    "pow.Tensor_Scalar": _pow,
    "pow.Tensor_Tensor": _pow,
    "eq": _plainly(torch.eq, "self", "other"),
    "ne": _plainly(torch.ne, "self", "other"),
    "view.default": _sizes(torch.reshape, "size"),
    "_unsafe_view": _sizes(torch.reshape, "size"),
    "reshape": _sizes(torch.reshape, "shape"),
    "flatten.using_ints": _plainly(torch.flatten, "self", "start_dim", "end_dim"),
    "unflatten.int": lambda a: (torch.unflatten, (a["self"], a["dim"], tuple(a["sizes"])), {}),
    "permute": _sizes(torch.permute, "dims"),
    "transpose.int": _plainly(torch.transpose, "self", "dim0", "dim1"),
    "t": lambda a: (torch.transpose, (a["self"], 0, 1), {}),
    "mT": lambda a: (torch.transpose, (a["self"], -2, -1), {}),
    "numpy_T": lambda a: (torch.transpose, (a["self"], 0, 1), {}) if _rank(a) == 2 else None,
    "expand": _sizes("expand", "size"),
    "repeat": _sizes("repeat", "repeats"),
    "slice.Tensor": _slice,
    "select.int": _select,
    "index.Tensor": _index,
    "concat": lambda a: (torch.cat, (a["tensors"], a["dim"]), {}),
    "cat": lambda a: (torch.cat, (a["tensors"], a["dim"]), {}),
    "split.Tensor": _plainly(torch.split, "self", "split_size", "dim"),
    "split.sizes": _plainly(torch.split, "self", "split_size", "dim"),
    "split_with_sizes": _plainly(torch.split, "self", "split_sizes", "dim"),
    "chunk": _plainly(torch.chunk, "self", "chunks", "dim"),
    "mean": _reduction(torch.mean),
    "sum": _reduction(torch.sum),
    "max_pool2d": _plainly(F.max_pool2d, "self", "kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "avg_pool2d": _plainly(
        F.avg_pool2d, "self", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"
    ),
    "max_pool1d": _plainly(F.max_pool1d, "self", "kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "max_pool3d": _plainly(F.max_pool3d, "self", "kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "avg_pool1d": _plainly(F.avg_pool1d, "self", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"),
    "avg_pool3d": _plainly(
        F.avg_pool3d, "self", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"
    ),
    "adaptive_avg_pool3d": _plainly(F.adaptive_avg_pool3d, "self", "output_size"),
    "expand_as": _plainly("expand_as", "self", "other"),
    "adaptive_avg_pool2d": _plainly(F.adaptive_avg_pool2d, "self", "output_size"),
    "adaptive_avg_pool1d": _plainly(F.adaptive_avg_pool1d, "self", "output_size"),
    "pad": lambda a: (F.pad, (a["self"], tuple(a["pad"]), a["mode"], a["value"]), {}),
    "constant_pad_nd": lambda a: (F.pad, (a["self"], tuple(a["pad"]), "constant", a["value"]), {}),
    "upsample_nearest2d.vec": _interpolate("nearest"),
    "upsample_bilinear2d.vec": _interpolate("bilinear"),
    "upsample_bicubic2d.vec": _interpolate("bicubic"),
    "sym_size.int": _plainly("size", "self", "dim"),
    "sym_numel": _plainly("numel", "self"),
    "to.dtype": _to,
    "to.device": _to,
    "to.dtype_layout": _to,
    "to.other": _to,
    "_to_copy": _to,
    "type_as": _plainly("type_as", "self", "other"),
    "clone": _clone,
    "contiguous": _unary("contiguous"),
    "detach": _unary(torch.detach),
    "alias": _unary(torch.clone),
    "lift_fresh_copy": _unary(torch.clone),
    "zeros": _factory(torch.zeros, "size"),
    "ones": _factory(torch.ones, "size"),
    "full": _factory(torch.full, "size", "fill_value"),
    "empty.memory_format": _factory(torch.empty, "size"),
    "arange.default": _factory(torch.arange, "end"),
    "arange.start": _factory(torch.arange, "start", "end"),
    "arange.start_step": _factory(torch.arange, "start", "end", "step"),
    "scalar_tensor": _factory(torch.scalar_tensor, "s"),
    "zeros_like": _like(torch.zeros_like, "self"),
    "ones_like": _like(torch.ones_like, "self"),
    "full_like": _like(torch.full_like, "self", "fill_value"),
    "new_zeros": _new("new_zeros"),
    "new_ones": _new("new_ones"),
    "new_full": _new("new_full"),
    "masked_fill": lambda a: (torch.masked_fill, (a["self"], a["mask"], a["value"]), {}),
}
"""Entries by ``name.overload``, or by ``name`` where all overloads are alike."""

_NAMES_ALIKE = words(
    "abs acos addmm all amax amin any argmax argmin asin atan baddbmm bitwise_and bitwise_not bitwise_or bmm ceil "
    "clamp clamp_max clamp_min cos cumsum einsum erf exp exp2 expm1 flip floor gather ge gt index_select isfinite "
    "isinf isnan le log log10 log1p log2 logical_and logical_not logical_or logsumexp lt maximum minimum movedim "
    "outer reciprocal remainder roll round rsqrt select_scatter sign sin slice_scatter sqrt square squeeze stack "
    "std tril triu unbind unsqueeze var where tile repeat_interleave narrow"
)
_FUNCTIONAL_ALIKE = words(
    "elu selu celu glu logsigmoid softsign hardshrink softshrink pixel_shuffle pixel_unshuffle normalize"
)

_ALIKE: dict[str, Callable[..., Any]] = {name: getattr(torch, name) for name in _NAMES_ALIKE} | {
    name: getattr(F, name) for name in _FUNCTIONAL_ALIKE
}
"""Operators whose function has the same name and the same arguments."""


def _follow_device(edit: Editor, node: fx.Node) -> None:
    """A device that export wrote down becomes that of the first input."""
    if node.kwargs.get("device") is None or isinstance(node.kwargs["device"], fx.Node):
        return
    inputs = [n for n in edit.graph.nodes if n.op == "placeholder" and isinstance(n.meta[PROBE][0], Tensor)]
    with edit.at(node):
        device = edit.call(getattr, inputs[0], "device")
    node.kwargs = node.kwargs | {"device": device}
