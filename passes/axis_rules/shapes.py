"""Operators that move, cut, join and re-bracket dimensions without looking at values."""

from collections.abc import Sequence

import torch

from fxfuse.passes.algebra import concat, cut, free_of, instances, narrow, regroup, unify_all
from fxfuse.passes.axis_rules.core import Call, axis_rule, dimensions, positive
from fxfuse.passes.variables import Dim, Dims, Factor, Var, expand, fresh, owned_by, pin, size_of, tell_apart

# ----------------------------------------------------------------------------------------- re-bracketing


def reshape_dims(x: Dims, shape: Sequence[int]) -> Dims:
    """Row-major reshape: the shortest runs of dimensions with equal products are regrouped, one run at a time."""
    out: Dims = []
    i = j = 0
    sizes = [size_of(dim) for dim in x]
    while i < len(x) or j < len(shape):
        run: Dims = []
        target: list[int] = []
        have = want = 1
        while True:
            if have == want and run and target:
                break
            if (have <= want and i < len(x)) or j >= len(shape):
                if i >= len(x):
                    break
                have *= sizes[i]
                run.append(x[i])
                i += 1
            else:
                want *= shape[j]
                target.append(shape[j])
                j += 1
        if not target:
            continue
        if len(run) == len(target) == 1 and have == want:
            out.append(run[0])
            continue
        flat = [factor for dim in run for factor in dim]
        pieces = regroup(flat, target) if have == want else None
        if pieces is None:
            pin(flat)
            pieces = [fresh(n, pinned=True) for n in target]
        out.extend(pieces)
    return [expand(dim) for dim in out]


@axis_rule(
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as", "ravel", "_reshape_alias",
    "view_copy",
)  # fmt: skip
def reshape(call: Call) -> Dims:
    """Any row-major change of shape."""
    if call.result.dtype != call.args[0].dtype:
        return pinned_out(call.dims(0), call)
    return reshape_dims(call.dims(0), call.shape())


@axis_rule("view_as_real", "view_as_complex", "view_as_real_copy", "view_as_complex_copy")
def real_and_imaginary(call: Call) -> Dims:
    """Pairs of numbers as a last dimension, or as complex numbers."""
    x = call.dims(0)
    if call.function._schema.name.startswith("aten::view_as_real"):
        return [*x, fresh(2, pinned=True)]
    pin(x[-1])
    free_of(x[:-1], [x[-1]])
    return x[:-1]


@axis_rule("squeeze", "squeeze_copy")
def squeeze(call: Call) -> Dims:
    """Dimensions of size 1 go."""
    x = call.dims(0)
    named = call.named("dim") if len(call.args) > 1 or "dim" in call.kwargs else range(len(x))
    gone = {positive(d, len(x)) for d in ([named] if isinstance(named, int) else named)}
    return [dim for i, dim in enumerate(x) if not (i in gone and size_of(dim) == 1)]


@axis_rule("unsqueeze")
def unsqueeze(call: Call) -> Dims:
    """A dimension of size 1 comes."""
    x = call.dims(0)
    x.insert(positive(call.args[1], len(x) + 1), [])
    return x


@axis_rule("expand", "expand_as", "broadcast_to", "expand_copy")
def expand_rule(call: Call) -> Dims:
    """A dimension of size 1 becomes n equal copies: any permutation leaves them."""
    x = call.dims(0)
    shape = call.shape()
    x = [[] for _ in range(len(shape) - len(x))] + x
    return [dim if size_of(dim) == n else fresh(n) for dim, n in zip(x, shape, strict=True)]


@axis_rule("repeat", "tile")
def repeat(call: Call) -> Dims:
    """Copies of the whole dimension one after the other: a new outer factor whose index does not matter."""
    x = call.dims(0)
    shape = call.shape()
    x = [[] for _ in range(len(shape) - len(x))] + x
    return [[*fresh(n // size_of(dim)), *dim] for dim, n in zip(x, shape, strict=True)]


@axis_rule("repeat_interleave")
def repeat_interleave(call: Call) -> Dims:
    """Each element several times in a row: a new inner factor, if all are repeated alike."""
    repeats, dim = call.argument(1, "repeats"), call.named("dim")
    x = call.dims(0)
    if not isinstance(repeats, int):
        return pinned_out(x, call)
    if dim is None:
        return [[*(factor for factors in x for factor in factors), *fresh(repeats)]]
    d = positive(dim, len(x))
    return [[*factors, *fresh(repeats)] if i == d else factors for i, factors in enumerate(x)]


# ------------------------------------------------------------------------------------------------ moving


@axis_rule("permute", "permute_copy")
def permute(call: Call) -> Dims:
    """Any order."""
    x = call.dims(0)
    return [x[positive(d, len(x))] for d in call.args[1]]


@axis_rule("transpose", "swapaxes", "swapdims", "transpose_copy")
def transpose(call: Call) -> Dims:
    """Two change places."""
    x = call.dims(0)
    a, b = (positive(d, len(x)) for d in call.args[1:3])
    x[a], x[b] = x[b], x[a]
    return x


@axis_rule("t", "mT", "adjoint", "mH", "numpy_T", "matrix_H", "t_copy")
def swap_last(call: Call) -> Dims:
    """A matrix, or a batch of them, turned over."""
    x = call.dims(0)
    if call.function._schema.name == "aten::numpy_T":
        return x[::-1]
    return x if len(x) < 2 else [*x[:-2], x[-1], x[-2]]


@axis_rule("movedim", "moveaxis")
def movedim(call: Call) -> Dims:
    """Some dimensions go to new places, the others keep their order."""
    x = call.dims(0)
    source, destination = (dimensions(a, len(x)) for a in call.args[1:3])
    order = [d for d in range(len(x)) if d not in source]
    for to, origin in sorted(zip(destination, source, strict=True)):
        order.insert(to, origin)
    return [x[d] for d in order]


@axis_rule("diagonal", "diagonal_copy", "diag_embed", "linalg_diagonal", "diag")
def diagonal(call: Call) -> Dims:
    """The main diagonal of a square gives both sides' common order, or takes it; other diagonals are no permutation of
    it. A parameter's diagonal could be permuted, but not merged: it keeps its order."""
    x, name = call.dims(0), call.function._schema.name.removeprefix("aten::")
    inward = name == "diag_embed" or (name == "diag" and len(x) == 1)
    rank = len(x) + 1 if inward else len(x)
    first, second = ("dim1", "dim2") if name != "diag" else ("", "")
    i, j = (positive(call.named(d, fallback), rank) for d, fallback in ((first, 0), (second, 1)))
    straight = call.named("offset", call.named("diagonal", 0)) == 0
    if inward and straight:
        tell_apart(x[-1])
        out = list(x[:-1])
        for place in sorted((i, j)):
            out.insert(place, x[-1])
        return out
    if straight and not call.meaning(call.args[0]).stored and size_of(x[i]) == size_of(x[j]):
        unify_all([(x[i], x[j])])
        return [*(dim for d, dim in enumerate(x) if d not in (i, j)), expand(x[i])]
    for dim in x:
        pin(dim)
    return [fresh(n, pinned=True) for n in call.shape()]


@axis_rule("as_strided", "as_strided_copy")
def as_strided(call: Call) -> Dims:
    """Numbers read as they lie, in steps of one's own. All in their order: a reshape. Leading and trailing dimensions
    in the steps that they have go along; what is between (windows that overlap) are positions. Else nothing is known.
    """
    x, stride = call.args[0], tuple(call.named("stride"))
    if x.storage_offset() != call.result.storage_offset():
        return pinned_out(call.dims(0), call)
    whole = x.is_contiguous() and x.numel() == call.result.numel()
    if whole and stride == torch.empty(call.shape(), device="meta").stride():
        return reshape_dims(call.dims(0), call.shape())
    before, after = list(zip(x.shape, x.stride(), strict=True)), list(zip(call.shape(), stride, strict=True))
    lead = _alike(before, after)
    tail = min(_alike(before[::-1], after[::-1]), x.ndim - lead, len(stride) - lead)
    tries = (_windows_between(call, i, j) for i in range(lead, -1, -1) for j in range(tail, -1, -1))
    return next((out for out in tries if out is not None), None) or pinned_out(call.dims(0), call)


def _alike(before: Sequence[tuple[int, int]], after: Sequence[tuple[int, int]]) -> int:
    """How many first items of both are equal."""
    return [*(a == b for a, b in zip(before, after, strict=False)), False].index(False)


def _windows_between(call: Call, lead: int, tail: int) -> Dims | None:
    """The dimensions that ``as_strided`` makes of a tensor where ``lead`` and ``tail`` dimensions are as they were: if
    the others lie one behind the other, and the new steps go from one of their elements to another."""
    x, shape, stride = call.args[0], call.shape(), call.named("stride")
    sizes, steps = x.shape[lead : x.ndim - tail], x.stride()[lead : x.ndim - tail]
    between = range(lead, len(shape) - tail)
    dense = all(a == b * n for a, b, n in zip(steps, steps[1:], sizes[1:], strict=False))
    step = steps[-1] if steps else 1
    if not dense or step < 1 or any(stride[d] % step for d in between):
        return None
    if sum((shape[d] - 1) * stride[d] for d in between) >= step * sizes.numel():
        return None
    dims = call.dims(0)
    first, middle, last = dims[:lead], dims[lead : x.ndim - tail], dims[x.ndim - tail :]
    for dim in middle:
        pin(dim)
    free_of([*first, *last], middle)
    out = [*first, *(fresh(shape[d], pinned=True) for d in between), *last]
    return [expand(dim) for dim in out]


# ----------------------------------------------------------------------------------- cutting and joining


def slice_dims(x: Dims, d: int, start: int, stop: int) -> Dims:
    """Indices ``start`` to ``stop`` of dimension ``d``."""
    size = size_of(x[d])
    if (start, stop) == (0, size):
        return x
    if not x[d]:
        return [fresh(0, pinned=True) if i == d else dim for i, dim in enumerate(x)]
    first, *rest = x[d]
    inner = size_of(rest)
    if start % inner or stop % inner or stop <= start:
        pin(x[d])
        return [fresh(stop - start, pinned=True) if i == d else dim for i, dim in enumerate(x)]
    if first.var.pinned and not any(owned_by(dim, (first.var,)) for dim in x):
        piece = Var((stop - start) // inner, pinned=True)
        others = [dim if i != d else rest for i, dim in enumerate(x)]
    else:
        piece, path = narrow(first.var, start // inner, stop // inner)
        others = instances([dim if i != d else rest for i, dim in enumerate(x)], first.var, path)
    head = [] if piece.size == 1 else [Factor(piece, first.origin)]
    return [expand([*head, *dim]) if i == d else dim for i, dim in enumerate(others)]


@axis_rule("slice", "slice_copy")
def slice_rule(call: Call) -> Dims:
    """A run of indices. Every k-th one is one of k neighbours, if all are in groups of k; else it is no segment."""
    x = call.dims(0)
    if not x:
        return x
    d = positive(call.named("dim", 0), len(x))
    n = call.args[0].shape[d]
    step = call.named("step", 1)
    start, stop, step = slice(call.named("start"), call.named("end"), step).indices(n)
    if step != 1 and stop - start > 0:
        if (start, call.shape()[d]) == (0, n):
            return x
        groups = regroup(x[d], [n // step, step]) if n % step == 0 and call.shape()[d] == n // step else None
        if groups is not None:
            prepare_cuts(groups[1], list(range(1, step)))
            parts = slice_dims([*(expand(dim) for dim in (*x[:d], *groups, *x[d + 1 :]))], d + 1, start, start + 1)
            return [*parts[: d + 1], *parts[d + 2 :]]
        pin(x[d])
        return [fresh(call.shape()[d], pinned=True) if i == d else dim for i, dim in enumerate(x)]
    return slice_dims(x, d, start, max(stop, start))


@axis_rule("narrow")
def narrow_rule(call: Call) -> Dims:
    """A run of indices."""
    x = call.dims(0)
    d = positive(call.args[1], len(x))
    start = int(call.args[2])  # a tensor of one number also says where
    start = start + call.args[0].shape[d] if start < 0 else start
    return slice_dims(x, d, start, start + call.args[3])


@axis_rule("select", "select_copy")
def select(call: Call) -> Dims:
    """One index of a dimension, which goes."""
    x = call.dims(0)
    d = positive(call.args[1], len(x))
    n = call.args[0].shape[d]
    index = call.args[2] + n if call.args[2] < 0 else call.args[2]
    out = slice_dims(x, d, index, index + 1)
    return [dim for i, dim in enumerate(out) if i != d]


@axis_rule("unbind", "unbind_copy")
def unbind(call: Call) -> list[Dims]:
    """Every index of a dimension, one after the other."""
    x = call.dims(0)
    d = positive(call.argument(1, "dim", 0), len(x))
    prepare_cuts(x[d], list(range(1, len(call.result))))
    outs = []
    for index in range(len(call.result)):
        out = slice_dims([expand(dim) for dim in x], d, index, index + 1)
        outs.append([dim for i, dim in enumerate(out) if i != d])
    return outs


def prepare_cuts(dim: Dim, borders: list[int]) -> None:
    """Cut at all borders at once, so that the segments stand side by side and not nested."""
    factors = expand(dim)
    if not factors or factors[0].var.pinned:
        return
    inner = size_of(factors[1:])
    if not any(border % inner for border in borders):
        cut(factors[0].var, [border // inner for border in borders])


@axis_rule("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk", "split_copy",
           "split_with_sizes_copy", "unsafe_split_with_sizes")  # fmt: skip
def split(call: Call) -> list[Dims]:
    """Consecutive runs of indices."""
    x = call.dims(0)
    d = positive(call.named("dim", 0), len(x))
    stops, at = [], 0
    for piece in call.result:
        at += piece.shape[d]
        stops.append(at)
    prepare_cuts(x[d], stops[:-1])
    starts = [0, *stops[:-1]]
    return [slice_dims([expand(dim) for dim in x], d, a, b) for a, b in zip(starts, stops, strict=True)]


@axis_rule("cat", "concat", "concatenate")
def cat(call: Call) -> Dims:
    """Segments side by side; all other dimensions agree."""
    operands = [call.of(t) for t in call.tensors() if t.shape != (0,)]
    d = positive(call.argument(1, "dim", 0), len(operands[0]))
    first = operands[0]
    for other in operands[1:]:
        unify_all((a, b) for i, (a, b) in enumerate(zip(first, other, strict=True)) if i != d)
    pieces = [expand(operand[d]) for operand in operands]
    pieces = [piece or [Factor(Var(1, pinned=True))] for piece in pieces]
    if len(pieces) == 1:
        return first
    if all(f.var.pinned for piece in pieces for f in piece):
        joined = fresh(sum(size_of(piece) for piece in pieces), pinned=True)
    else:
        joined = concat(pieces)
    return [joined if i == d else expand(dim) for i, dim in enumerate(first)]


@axis_rule("stack")
def stack(call: Call) -> Dims:
    """A new dimension whose index says which operand: its order matters, the others agree."""
    operands = [call.of(t) for t in call.tensors()]
    first = operands[0]
    for other in operands[1:]:
        unify_all(zip(first, other, strict=True))
    out = [expand(dim) for dim in first]
    out.insert(positive(call.argument(1, "dim", 0), len(out) + 1), fresh(len(operands), pinned=True))
    return out


@axis_rule("constant_pad_nd", "pad")
def pad(call: Call) -> Dims:
    """A constant before and after is a segment of its own; other modes copy positions."""
    x = call.dims(0)
    widths = list(call.args[1])
    mode = call.named("mode", "constant") if call.function._schema.name == "aten::pad" else "constant"
    out = list(x)
    for k in range(len(widths) // 2):
        d = len(x) - 1 - k
        before, after = widths[2 * k], widths[2 * k + 1]
        if before == after == 0:
            continue
        if mode != "constant" or before < 0 or after < 0 or all(f.var.pinned for f in out[d]):
            pin(out[d])
            out[d] = fresh(size_of(out[d]) + before + after, pinned=True)
            continue
        around = [[Factor(Var(n))] if n else None for n in (before, after)]
        out[d] = concat([piece for piece in (around[0], out[d], around[1]) if piece])
    return out


def pinned_out(x: Dims, call: Call) -> Dims:
    """No permutation is followed through: pinned in, pinned out."""
    for dim in x:
        pin(dim)
    return [fresh(n, pinned=True) for n in call.shape()]
