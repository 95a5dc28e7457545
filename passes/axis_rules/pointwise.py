"""Operators that act on every element alone, and those that treat the elements of a dimension alike."""

from torch import Tensor

from fxfuse.passes.algebra import check_owners, free_of, unify, unify_all
from fxfuse.passes.axis_rules.core import Call, axis_rule, dimensions
from fxfuse.passes.variables import Dim, Dims, Factor, Orders, Var, alike, expand, fresh, pin, unordered


def broadcast(operands: list[Dims]) -> Dims:
    """Align dimensions from the right; those of size 1 and those of equal values say nothing, all others agree."""
    rank = max((len(dims) for dims in operands), default=0)
    out: Dims = [[] for _ in range(rank)]
    pairs: list[tuple[Dim, Dim]] = []
    for dims in operands:
        for position, dim in enumerate(dims, start=rank - len(dims)):
            known = out[position]
            if not known or (dim and alike(known)):
                out[position] = dim
            elif dim and not alike(dim):
                pairs.append((known, dim))
    unify_all(pairs)
    return [expand(dim) for dim in out]


@axis_rule(
    "fxfuse::pointwise", "alias", "detach", "clone", "contiguous", "to", "_to_copy", "type_as", "lift_fresh",
    "lift_fresh_copy",
    "dropout", "native_dropout", "feature_dropout", "alpha_dropout", "positive", "lerp", "copy_", "copy", "float_power",
    "relu", "relu6", "rrelu", "gelu", "silu", "mish", "celu", "selu", "elu", "hardswish",
    "hardsigmoid", "hardtanh", "hardshrink", "softshrink", "softplus", "leaky_relu", "log_sigmoid", "threshold",
    "sigmoid", "tanh", "masked_fill", "where", "clamp", "clip", "rsub", "isclose", "cpu", "cuda",
    "square", "fake_quantize_per_tensor_affine", "fake_quantize_per_tensor_affine_cachemask",
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams", "_fake_quantize_learnable_per_tensor_affine",
    "_conj", "_neg_view", "resolve_conj", "resolve_neg", "data", "requires_grad_",
)  # fmt: skip
def pointwise(call: Call) -> Dims | list[Dims]:
    """Every operand's dimensions agree, up to broadcasting; one of which only the type is asked says nothing."""
    operands = call.tensors()[: 1 if call.function._schema.name in _OF_A_TYPE else None]
    out = broadcast([call.of(t) for t in operands])
    return [out for _ in call.result] if isinstance(call.result, tuple | list) else out


_OF_A_TYPE = {"aten::to", "aten::type_as"}


@axis_rule("prelu", "_prelu_kernel")
def prelu(call: Call) -> Dims:
    """One slope for all, or one per channel (dimension 1)."""
    x, slope = call.dims(0), call.dims(1)
    factors = [f for dim in slope for f in dim]
    if factors and len(x) > 1:
        unify(factors, x[1])
    return x


@axis_rule(
    "fake_quantize_per_channel_affine", "fake_quantize_per_channel_affine_cachemask",
    "_fake_quantize_learnable_per_channel_affine",
)  # fmt: skip
def per_channel(call: Call) -> Dims | list[Dims]:
    """Scale and zero point along one dimension."""
    x = call.dims(0)
    for operand in (call.dims(1), call.dims(2)):
        if operand and operand[0]:
            unify(operand[0], x[call.named("axis")])
    return [x for _ in call.result] if isinstance(call.result, tuple | list) else x


@axis_rule(
    "sum", "mean", "amax", "amin", "max", "min", "var", "std", "prod", "logsumexp", "norm", "linalg_vector_norm",
    "any", "all", "nansum", "nanmean", "count_nonzero", "var_mean", "std_mean", "aminmax", "median", "nanmedian",
    "frobenius_norm",
)  # fmt: skip
def reduction(call: Call) -> Dims | list[Dims]:
    """A symmetric function of the reduced dimensions: they vanish. Who reads where an extreme stood reads an order."""
    tensors = call.tensors()
    if len(tensors) > 1:
        return pointwise(call)
    x = call.of(tensors[0])
    schema = {a.name for a in call.function._schema.arguments}
    dim = call.named("dim") if "dim" in schema else None
    reduced = set(dimensions(dim, len(x)))
    if dim is not None and not isinstance(dim, int) and not len(dim) and call.shape() == list(tensors[0].shape):
        reduced = set()  # to some no dimension means none, to others all
    keep = bool(call.named("keepdim", False))
    if call.function._schema.name in _WITH_INDICES and isinstance(call.result, tuple | list):
        call.points[1] = [x[d] for d in reduced]
    kept: Dims = [([] if d in reduced else dims) for d, dims in enumerate(x) if keep or d not in reduced]
    if isinstance(call.result, tuple | list):
        return [list(kept) for _ in call.result]
    return kept


_WITH_INDICES = {"aten::max", "aten::min", "aten::median", "aten::nanmedian"}


@axis_rule("histc")
def histogram(call: Call) -> Dims:
    """How many of all elements lie between two borders: a symmetric function, and borders have an order."""
    return [fresh(n, pinned=True) for n in call.shape()]


@axis_rule("argmax", "argmin")
def index_reduction(call: Call) -> Dims:
    """The position of an element: no permutation of that dimension leaves it, for whoever reads it."""
    x = call.dims(0)
    reduced = set(dimensions(call.named("dim"), len(x)))
    call.points[0] = [x[d] for d in reduced]
    keep = bool(call.named("keepdim", False))
    return [([] if d in reduced else dims) for d, dims in enumerate(x) if keep or d not in reduced]


@axis_rule("softmax", "log_softmax", "_softmax", "_log_softmax", "_safe_softmax")
def symmetric(call: Call) -> Dims:
    """Normalised over a dimension whose elements are treated alike: permuting in permutes out."""
    x = call.dims(0)
    d = call.argument(1, "dim")
    at = range(len(x)) if d is None else [d % max(1, len(x))]
    free_of((dim for i, dim in enumerate(x) if i not in at), (x[i] for i in at if x))
    return x


@axis_rule(
    "cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", "flip", "roll", "_fft_r2c", "_fft_c2r", "_fft_c2c", "diff"
)
def ordered(call: Call) -> Dims | list[Dims]:
    """The order of the elements of the named dimensions matters."""
    x = call.dims(0)
    dim = call.named("dims") if call.named("dims") is not None else call.named("dim")
    moved = dimensions(dim, len(x))
    for tensor in call.tensors()[1:]:  # what stands before the first difference, or after the last
        other = call.of(tensor)
        unify_all((a, b) for i, (a, b) in enumerate(zip(x, other, strict=True)) if i not in moved)
        for d in moved:
            pin(other[d])
    for d in moved:
        pin(x[d])
    out = [fresh(n, pinned=True) if i in moved else dim for i, (dim, n) in enumerate(zip(x, call.shape(), strict=True))]
    return [out for _ in call.result] if isinstance(call.result, tuple | list) else out


@axis_rule("sort", "argsort", "topk", "kthvalue", "mode", "msort")
def sorting(call: Call) -> Dims | list[Dims]:
    """Ranks replace positions along one dimension: what stands at a rank is a symmetric function, where it stood is
    not."""
    x = call.dims(0)
    if not x:
        return [x for _ in call.result] if isinstance(call.result, tuple | list) else x
    d = dimensions(call.named("dim", -1), len(x))[0] if call.function._schema.name != "aten::msort" else 0
    several = isinstance(call.result, tuple | list)
    if several or call.function._schema.name == "aten::argsort":
        call.points[1 if several else 0] = [x[d]]
    in_order = call.named("sorted", True)
    if not in_order and call.meaning(call.args[0]).stored:
        pin(x[d])
    rows = [f for i, dim in enumerate(x) if i != d for f in dim]
    ranks: Dim = [] if in_order else unordered(call.shape()[d], Orders(x[d], rows))  # the same for values and positions

    def out(shape: list[int]) -> Dims:
        if len(shape) != len(x):
            return [dim for i, dim in enumerate(x) if i != d]
        ranked = fresh(shape[d], pinned=True) if in_order else ranks
        return [ranked if i == d else dim for i, dim in enumerate(x)]

    if isinstance(call.result, tuple | list):
        return [out(list(r.shape)) for r in call.result]
    return out(call.shape())


@axis_rule(
    "zeros", "ones", "full", "empty", "zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones",
    "new_full", "new_empty", "scalar_tensor", "zero", "fill", "empty_strided", "new_empty_strided",
)  # fmt: skip
def constant(call: Call) -> Dims:
    """One number everywhere: any permutation leaves it."""
    return [fresh(n) for n in call.shape()]


@axis_rule(
    "arange", "linspace", "logspace", "randn", "rand", "randint", "randperm", "rand_like", "randn_like",
    "normal", "bernoulli", "uniform", "tril_indices", "triu_indices", "hann_window", "randint_like", "exponential",
)  # fmt: skip
def pinned_values(call: Call) -> Dims:
    """Values that depend on the index."""
    for tensor in call.tensors():
        for dim in call.of(tensor):
            pin(dim)
    return [fresh(n, pinned=True) for n in call.shape()]


@axis_rule("eye")
def identity(call: Call) -> Dims:
    """The same whatever the order of both sides, if they have one order."""
    rows, columns = call.shape()
    side: Dim = [Factor(Var(rows))] if rows > 1 else []
    return [side, list(side)] if rows == columns else [fresh(n, pinned=True) for n in (rows, columns)]


@axis_rule("bucketize")
def bucketize(call: Call) -> Dims:
    """Every element alone by a list of borders."""
    for dim in call.dims(1):
        pin(dim)
    return call.dims(0) if isinstance(call.args[0], Tensor) else []


@axis_rule("searchsorted")
def searchsorted(call: Call) -> Dims:
    """Every element alone by its list of borders: by the one list, or by the one at the same leading indices."""
    borders, values = call.dims(0), call.args[1]
    if not isinstance(values, Tensor):
        pin(borders[-1])
        return borders[:-1]
    dims = call.of(values)
    pin(borders[-1])
    if len(borders) > 1:
        unify_all(zip(borders[:-1], dims[:-1], strict=True))
    for operand in [call.of(t) for t in call.tensors()[2:]]:  # the order in which the borders stand
        for dim in operand:
            pin(dim)
    return [expand(dim) for dim in dims]


@axis_rule("tril", "triu")
def triangle(call: Call) -> Dims:
    """A triangle of the last two dimensions is ordered in both."""
    x = call.dims(0)
    pin(x[-1])
    pin(x[-2])
    return x


@axis_rule("cosine_similarity")
def cosine_similarity(call: Call) -> Dims:
    """Both operands agree; the compared dimension vanishes."""
    out = broadcast([call.dims(0), call.dims(1)])
    check_owners(out)  # the operands side by side may hold an owner twice
    d = dimensions(call.named("dim", 1), len(out))[0]
    return [dim for i, dim in enumerate(out) if i != d]
