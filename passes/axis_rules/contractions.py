"""Operators that sum over a dimension of one operand against a dimension of another.

``y[.., o] = sum_k x[.., k] W[o, k]``: the summed dimensions agree, and any permutation of them goes unseen; the others
come out as they went in. Convolution is the same over channels, group by group; attention is it twice.
"""

from itertools import pairwise

from torch import Tensor

from fxfuse.passes.algebra import disown, free_of, regroup, unify, unify_all
from fxfuse.passes.axis_rules.core import Call, at, axis_rule, disown_but, own
from fxfuse.passes.axis_rules.pointwise import broadcast
from fxfuse.passes.variables import Dim, Dims, Var, alike, expand, fresh, inside, owner, owners_of, pin, settle, size_of


def _add_bias(out: Dims, bias: Dims | None, at: int) -> None:
    if bias and bias[-1]:
        unify(out[at], bias[-1])


@axis_rule("linear")
def linear(call: Call) -> Dims:
    """Inputs by weight columns; rows come out."""
    x, weight = call.dims(0), call.dims(1)
    call.join(x[-1], weight[-1])
    call.product(call.args[0], x[-1], call.args[1], weight[-1])
    out = [*x[:-1], weight[0]] if len(weight) == 2 else x[:-1]
    free_of(out, [x[-1], weight[-1]])
    bias = call.argument(2, "bias")
    return out if bias is None else broadcast([out, call.of(bias)])


@axis_rule("matmul", "mm", "bmm", "mv", "dot", "vdot")
def matmul(call: Call) -> Dims:
    """Batched matrix product; leading dimensions broadcast."""
    return _matmul(call, call.args[0], call.args[1])


@axis_rule("inner")
def inner(call: Call) -> Dims:
    """Last dimension by last dimension, for every pair of the others; a number only scales."""
    a, b = call.dims(0), call.dims(1)
    if not a or not b:
        return a or b
    call.join(a[-1], b[-1])
    call.product(call.args[0], a[-1], call.args[1], b[-1])
    out = [*a[:-1], *b[:-1]]
    free_of(out, [a[-1], b[-1]])
    return out


def _matmul(call: Call, left: Tensor, right: Tensor) -> Dims:
    a, b = call.of(left), call.of(right)
    row = a[-2:-1] if len(a) > 1 else []
    column = b[-1:] if len(b) > 1 else []
    k_a, k_b = a[-1], b[-2] if len(b) > 1 else b[-1]
    for tensor, dims, other in ((left, a, k_b), (right, b, k_a)):
        if call.meaning(tensor).stored and len(dims) > 2:  # a matrix for every index of what stands before
            summed = k_a if dims is a else k_b
            for dim in dims[-2:]:  # what is summed has the owner that it has in the other operand, if it has one there
                if dim is not summed or not any(owner(f.var) for f in expand(other)):
                    own(dim, dims[-3])
    batch_a, batch_b = a[:-2], b[:-2]
    batch = broadcast([batch_a, batch_b])
    count = min(len(batch_a), len(batch_b))
    shared = [(batch_a[-i], batch_b[-i]) for i in range(1, count + 1)]
    call.join(k_a, k_b, shared)
    call.product(left, k_a, right, k_b)
    out = [*batch, *row, *column]
    free_of(out, [k_a, k_b])
    return out


@axis_rule("addmm", "baddbmm", "addmv", "addbmm")
def addmm(call: Call) -> Dims:
    """A product plus an addend."""
    out = _matmul(call, call.args[1], call.args[2])
    if call.function._schema.name == "aten::addbmm":  # which sums over the matrices too
        call.product(call.args[1], call.dims(1)[0], call.args[2], call.dims(2)[0])
        out = out[1:]
    return broadcast([out, call.dims(0)])


@axis_rule("_grouped_mm", "transformers::grouped_mm_fallback")
def grouped(call: Call) -> Dims:
    """A matrix for every run of indices: ``y[s] = x[s] W[run of s]``. Offsets say where runs end, so the matrices, and
    what is cut into runs, keep their order; all matrices share that of what is summed and of what comes out."""
    (left, right), offsets = call.args[:2], call.named("offs")
    if offsets is None:
        return _matmul(call, left, right)
    a, b = call.dims(0), call.dims(1)
    if len(a) == len(b):
        cut, out = a[-1], [fresh(call.shape()[0], pinned=True), a[-2], b[-1]]
    else:
        cut, out = a[-2] if len(a) == 2 else b[-1], [a[-2], b[-1]]
    matrices = [dims[0] for dims in (a, b) if len(dims) == 3]
    for dim in (cut, *matrices, *call.of(offsets)):
        pin(dim)
    call.join(a[-1], b[-2])
    call.product(left, a[-1], right, b[-2])
    free_of(out, [a[-1], *matrices])
    return [expand(dim) for dim in out]


@axis_rule("outer", "ger")
def outer(call: Call) -> Dims:
    """Every pair."""
    return [*call.dims(0), *call.dims(1)]


@axis_rule("einsum")
def einsum(call: Call) -> Dims:
    """Letters name dimensions; letters that do not come out are summed."""
    tensors = list(call.args[1])
    inputs, output = _letters(call.args[0], [t.ndim for t in tensors])
    dims = [call.of(t) for t in tensors]
    places: dict[str, list[tuple[int, Dim]]] = {}
    for k, letters in enumerate(inputs):
        for letter, dim in zip(letters, dims[k], strict=True):
            places.setdefault(letter, []).append((k, dim))
    pairs: list[tuple[Dim, Dim]] = []
    for letter in sorted(places, key=lambda x: x not in output):
        real = [dim for _, dim in places[letter] if dim and not alike(dim)]
        pairs.extend((real[0], dim) for dim in real[1:])
    unify_all(pairs)
    for found in places.values():  # what holds equal values stands last: it says nothing
        found.sort(key=lambda place: alike(place[1]))
    for tensor, letters in zip(tensors, inputs, strict=True):
        for letter in set(letters) if call.meaning(tensor).stored else ():
            if letters.count(letter) > 1:  # a parameter's diagonal can be permuted, but not merged
                for _, dim in places[letter]:
                    pin(dim)
    for tensor, letters, operand in zip(tensors, inputs, dims, strict=True):
        if call.meaning(tensor).stored:
            kept = [dim for letter, dim in zip(letters, operand, strict=True) if letter in output]
            for outer_dim, inner_dim in pairwise(kept):
                own(inner_dim, outer_dim)
    _einsum_owners(places, inputs)
    for letter, found in places.items():
        if letter not in output and len(found) > 1:
            stored = all(call.meaning(tensors[k]).stored for k, _ in found)
            for k, dim in found[:1] if stored else found:
                call.contract(tensors[k], dim)
    out = [expand(next((dim for _, dim in places[letter] if dim), [])) for letter in output]
    free_of(out, (dim for letter, found in places.items() if letter not in output for _, dim in found))
    return out


def _einsum_owners(places: dict[str, list[tuple[int, Dim]]], inputs: list[str]) -> None:
    """What an owner owns may be ordered apart only if every operand that holds it holds the owner at one letter."""
    for found in places.values():
        settle(dim for _, dim in found[:1] if len(found) > 1)
        mine = inside(found[0][1])
        for var in mine:
            for outer in owners_of(var):
                if outer in mine:
                    continue
                holders = [{other for other in inputs[k] if _holds(places[other], k, outer)} for k, _ in found]
                if any(len(h) != 1 for h in holders) or len(set.union(*holders)) != 1:
                    disown(var)
                    break


def _holds(found: list[tuple[int, Dim]], operand: int, var: Var) -> bool:
    return any(k == operand and any(f.var is var for f in expand(dim)) for k, dim in found)


def _letters(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """Operand and output letters, an ellipsis spelt out in letters that nobody uses."""
    equation = equation.replace(" ", "")
    left, arrow, output = equation.partition("->")
    operands = left.split(",")
    spare = [chr(c) for c in range(0x100, 0x100 + 64)]
    widest = max([r - len(o.replace("...", "")) for o, r in zip(operands, ranks, strict=True) if "..." in o], default=0)
    dots = spare[:widest]
    filled = []
    for operand, rank in zip(operands, ranks, strict=True):
        count = rank - len(operand.replace("...", ""))
        filled.append(operand.replace("...", "".join(dots[widest - count :])))
    if not arrow:
        counts = "".join(filled)
        output = "".join(dots) + "".join(sorted(c for c in set(counts) if counts.count(c) == 1 and c not in dots))
    return filled, output.replace("...", "".join(dots))


@axis_rule("bilinear")
def bilinear(call: Call) -> Dims:
    """``y_o = sum_ij x_i W_oij z_j``."""
    x, z, weight = call.dims(0), call.dims(1), call.dims(2)
    call.join(x[-1], weight[1])
    call.join(z[-1], weight[2])
    call.contract(call.args[0], x[-1])
    call.contract(call.args[1], z[-1])
    call.contract(call.args[2], weight[1])
    call.contract(call.args[2], weight[2])
    out = [*broadcast([x[:-1], z[:-1]]), weight[0]]
    free_of(out, [x[-1], z[-1], *weight[1:]])
    bias = call.argument(3, "bias")
    return out if bias is None else broadcast([out, call.of(bias)])


@axis_rule("cdist")
def cdist(call: Call) -> Dims:
    """Distances between rows: the features are summed over."""
    a, b = call.dims(0), call.dims(1)
    call.join(a[-1], b[-1])
    call.product(call.args[0], a[-1], call.args[1], b[-1])
    out = [*broadcast([a[:-2], b[:-2]]), a[-2], b[-2]]
    free_of(out, [a[-1], b[-1]])
    return out


@axis_rule("_pdist_forward", "pdist")
def pdist(call: Call) -> Dims:
    """Distances between all pairs of rows, in their order: the features are summed over."""
    rows, features = call.dims(0)
    pin(rows)
    disown_but(features, ())
    call.contract(call.args[0], features)
    return [fresh(call.shape()[0], pinned=True)]


# --------------------------------------------------------------------------------------------- convolution


@axis_rule("conv1d", "conv2d", "conv3d", "convolution", "_convolution", "convolution_overrideable")
def convolution(call: Call) -> Dims:
    """Channels are contracted group by group; kernels look at the order of positions."""
    transposed = bool(call.named("transposed", False))
    return _convolution(call, transposed)


@axis_rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def convolution_transposed(call: Call) -> Dims:
    """The same with the weight's first two dimensions in each other's role."""
    return _convolution(call, True)


def _convolution(call: Call, transposed: bool) -> Dims:
    x, weight = call.dims(0), call.dims(1)
    groups = call.named("groups", 1)
    spatial = len(weight) - 2
    places = _convolved(call, x[len(x) - spatial :])
    for dim in weight[2:]:
        pin(dim)
    channels = len(x) - spatial - 1
    if groups == 1:
        into, outof = (0, 1) if transposed else (1, 0)
        call.join(x[channels], weight[into])
        call.product(call.args[0], x[channels], call.args[1], weight[into])
        out = expand(weight[outof])
        free_of([*x[:channels], out, *places], [weight[into]])
    else:
        out = _grouped(call, x[channels], weight, groups, transposed)
    free_of(places if groups > 1 else [*x[:channels], out, *places], [x[channels]])
    dims = [*(expand(dim) for dim in [*x[:channels], out, *places])]
    bias = call.argument(2, "bias")
    _add_bias(dims, None if bias is None else call.of(bias), channels)
    return dims


def _convolved(call: Call, places: Dims) -> Dims:
    """What becomes of positions: a kernel of one number that steps by one and does not pad takes each as it stands."""
    out: Dims = []
    for k, (dim, size) in enumerate(zip(places, call.shape()[-len(places) :], strict=True)):
        one = call.args[1].shape[2 + k] == 1 and size == size_of(dim) and at(call.named("stride", 1), k) == 1
        one = one and at(call.named("padding", 0), k) in (0, "same", "valid")  # what is cut off may be put back behind
        if not one:
            pin(dim)
        out.append(dim if one else fresh(size, pinned=True))
    return out


def _grouped(call: Call, channels: Dim, weight: Dims, groups: int, transposed: bool) -> Dim:
    """``x[g, i]`` by ``W[(g, o), i]`` (transposed: ``W[(g, i), o]``) gives ``y[g, o]``."""
    inner = size_of(channels) // groups
    x = regroup(channels, [groups, inner])
    first = regroup(weight[0], [groups, size_of(weight[0]) // groups])
    if x is None or first is None:
        for dim in (channels, *weight[:2]):
            pin(dim)
        return fresh(call.shape()[-len(weight) + 1], pinned=True)
    unify(x[0], first[0])
    group = expand(x[0])
    own(weight[1], group)
    read, written = (first[1], weight[1]) if transposed else (weight[1], first[1])
    unify(x[1], read)
    disown_but(read, {f.var for f in expand(x[0])})
    call.product(call.args[0], x[1] or x[0], call.args[1], read)
    out = [*expand(x[0]), *expand(written)]
    free_of([out], [read])
    return out


@axis_rule("torchvision::deform_conv2d")
def convolution_deformed(call: Call) -> Dims:
    """A convolution whose kernel looks elsewhere at every place of every sample. Each group of input channels has
    offsets of its own."""
    x, weight = call.dims(0), call.dims(1)
    groups, offset_groups = call.named("groups"), call.named("offset_groups")
    for other in (call.dims(2), *([call.dims(3)] if call.named("use_mask") else [])):
        unify_all([(x[0], other[0])])
        for dim in other[1:]:
            pin(dim)
    for dim in (*x[2:], *weight[2:]):
        pin(dim)
    parts = regroup(x[1], [offset_groups, size_of(x[1]) // offset_groups]) if offset_groups > 1 else [[], x[1]]
    pin(x[1] if parts is None else parts[0])
    if groups == 1:
        call.join(x[1], weight[1])
        call.product(call.args[0], x[1], call.args[1], weight[1])
        out = expand(weight[0])
        free_of([x[0], out], [x[1]])
    else:
        out = _grouped(call, x[1], weight, groups, transposed=False)
    dims = [expand(x[0]), out, *(fresh(n, pinned=True) for n in call.shape()[2:])]
    _add_bias(dims, call.dims(4), 1)
    return dims


# ----------------------------------------------------------------------------------------------- attention


@axis_rule("scaled_dot_product_attention")
def attention(call: Call) -> Dims:
    """``softmax(q k') v``: query and key agree in width, key and value in length; heads are a leading dimension."""
    q, k, v = (call.of(t) for t in call.args[:3])
    if call.named("enable_gqa") and size_of(q[-3]) != size_of(k[-3]):
        heads = regroup(q[-3], [size_of(k[-3]), size_of(q[-3]) // size_of(k[-3])])
        if heads is None:
            pin(q[-3])
            heads = [fresh(size_of(k[-3]), pinned=True), fresh(size_of(q[-3]) // size_of(k[-3]), pinned=True)]
        q = [*q[:-3], *heads, *q[-2:]]
        k, v = ([*dims[:-2], [], *dims[-2:]] for dims in (k, v))
    batch = broadcast([q[:-2], k[:-2], v[:-2]])
    call.join(q[-1], k[-1], list(zip(q[-3::-1], k[-3::-1], strict=False)))
    call.join(k[-2], v[-2], list(zip(k[-3::-1], v[-3::-1], strict=False)))
    call.product(call.args[0], q[-1], call.args[1], k[-1])
    if call.named("enable_gqa") and len(q) > call.args[0].ndim:
        batch = [*batch[:-2], [*batch[-2], *batch[-1]]]
    mask = call.named("attn_mask")
    if mask is not None:
        broadcast([[*batch, q[-2], k[-2]], call.of(mask)])
    if call.named("is_causal"):
        pin(q[-2])
        pin(k[-2])
    out = [*(expand(dim) for dim in batch), expand(q[-2]), expand(v[-1])]
    free_of(out, [k[-2], v[-2], q[-1], k[-1]])
    return out
