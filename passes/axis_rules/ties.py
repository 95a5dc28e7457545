"""Which values may be equal to others of their tensor: of equal ones the first is found, and that is a matter of order.

Real numbers that differ are taken to stay different: a sum with one, a contraction with weights, a monotone function of
one. Three cases of a tensor are told apart:

* ``NONE``: no two are equal, but for copies along a dimension (which its variable says).
* ``LEAST``: the least of them may be there several times: zeros after a ReLU, scores that a mask has put out. The
  largest is still one alone, and as many of the largest as are looked for are taken to stand above those.
* ``SOME``: any may be: truths and counts, rounded numbers, one number in many places.
"""

from collections.abc import Callable

from torch import Tensor

from fxfuse.passes.axis_rules.core import FOLLOWING, MOVING, RULES, Call, rule_for
from fxfuse.passes.variables import Dims, expand

NONE, LEAST, SOME = 0, 1, 2
LOW = -1e4
"""What a mask puts in place of a score to put it out lies below this."""

_MADE = frozenset(
    (
        "threshold", "hardtanh", "hardsigmoid", "hardswish", "hardshrink", "softshrink", "relu6", "sign", "sgn",
        "round", "floor", "ceil", "trunc", "fix", "heaviside", "floor_divide",
        "fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine", "constant_pad_nd", "pad",
        "index_fill", "tril", "triu", "diag_embed", "nan_to_num", "clamp_max", "zeros_like", "ones_like",
        "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided",
        "zero", "fill",
    )
)  # fmt: skip
_CHOSEN = frozenset(["where", "maximum", "minimum", "fmax", "fmin"])
_SUMS = frozenset(["add", "sub", "rsub"])
_KEPT = frozenset(
    (
        "cat", "concat", "concatenate", "stack", "index", "gather", "index_select", "take_along_dim",
        "embedding", "slice_scatter", "select_scatter", "scatter", "index_put", "index_copy", "roll", "flip",
        "sort", "topk", "kthvalue", "amax", "amin", "max", "min", "median", "nanmedian", "cummax", "cummin",
        "mode", "unfold", "im2col", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "diagonal", "diag",
        "dropout", "sigmoid", "exp", "expm1", "log", "log1p", "log2", "log10", "sqrt", "tanh", "atan",
        "softplus", "softmax", "log_softmax", "_softmax", "_log_softmax", "log_sigmoid", "logit", "erf",
        "asinh",
    )
) | {name.removeprefix("aten::") for name in MOVING}  # fmt: skip
"""Each value of the result is one of the operand's, or a monotone function of one."""
_LARGEST = frozenset(["argmax", "max", "topk", "cummax"])


def ties(call: Call, of: Callable[[Tensor], int], out: Dims) -> int:
    """Whether values of the result, of dimensions ``out``, may be equal; ``of`` says it of the operands."""
    name = _name(call)
    operands = [t for t in call.tensors() if t.numel() > 1] or call.tensors()
    floats = [t for t in operands if t.is_floating_point() or t.is_complex()]
    most = max(map(of, floats), default=SOME)
    shape = call.shape()
    if name in _MADE or call.named("rounding_mode") is not None:
        return SOME
    if name == "masked_fill":
        return max(of(call.args[0]), _filled(call.args[2]))
    if name == "relu" or name == "clamp_min" or (name in ("clamp", "clip") and call.named("max") is None):
        return max(most, LEAST)
    if name in ("clamp", "clip"):
        return SOME
    if name in _CHOSEN or (name in ("max", "min") and len(call.tensors()) > 1):
        given = call.args[1:3] if name == "where" else call.args[:2]
        return max(of(x) if isinstance(x, Tensor) and list(x.shape) == shape else _filled(x) for x in given)
    if name in _SUMS and any(list(t.shape) == shape and of(t) == NONE for t in floats):
        return NONE
    if name in _KEPT:
        return SOME if _repeated(call, name) else most
    if rule_for(call.function) is RULES["fxfuse::pointwise"]:
        return SOME if any(of(t) for t in operands) else NONE
    kept = {f.var for dim in out for f in expand(dim) if not f.var.pinned}  # what differs there differs no more
    along = any(of(t) == SOME and kept & {f.var for dim in call.of(t) for f in expand(dim)} for t in operands)
    return SOME if along or all(of(t) == SOME for t in operands) else NONE


def _filled(value: object) -> int:
    """What is known of values in whose place ``value`` is put."""
    return LEAST if isinstance(value, int | float) and value <= LOW else SOME


def first_of_equals(call: Call, level: int) -> bool:
    """Whether positions that the operator finds depend on which of equal values stands first."""
    name = _name(call)
    largest = (name in _LARGEST or "max_pool" in name) and bool(call.named("largest", True))
    return level == SOME or (level == LEAST and not largest)


def _repeated(call: Call, name: str) -> bool:
    """Whether one number is put in several places, or what is picked by positions may be picked twice."""
    if name == "scatter" and not isinstance(call.named("src"), Tensor):
        return True
    if f"aten::{name}" not in FOLLOWING or name in ("gather", "take_along_dim"):
        return False
    index = call.named(FOLLOWING[f"aten::{name}"])
    given = index if isinstance(index, list | tuple) else [index]
    return any(not f.var.pinned for t in given if t is not None for dim in call.of(t) for f in expand(dim))


def _name(call: Call) -> str:
    name = str(call.function._schema.name).split("::")[-1]
    return name[:-1] if name.endswith("_") else name
