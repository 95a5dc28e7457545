"""Operators that pick or overwrite by index: a dimension that is indexed keeps its order, all others go along.

Positions that were found in a dimension (by ``topk``, ``argmax``) move with it: where they are the index, what is
indexed by them is that dimension, and any order will do. So experts that a gate picks may change places.
"""

import torch

from fxfuse.passes.algebra import free_of, unify_all
from fxfuse.passes.axis_rules.core import Call, axis_rule, positive
from fxfuse.passes.axis_rules.pointwise import broadcast
from fxfuse.passes.axis_rules.shapes import pinned_out, slice_dims
from fxfuse.passes.variables import Dim, Dims, Factor, Var, expand, fresh, pin, size_of, tell_apart


@axis_rule("slice_scatter", "select_scatter")
def scatter_slice(call: Call) -> Dims:
    """A run of indices is overwritten: what is written means what stood there."""
    x, source = call.dims(0), call.dims(1)
    d = positive(call.named("dim", 0), len(x))
    n = call.args[0].shape[d]
    if call.function._schema.name == "aten::select_scatter":
        index = call.args[3] % n
        start, stop, step = index, index + 1, 1
        source.insert(d, [])
    else:
        start, stop, step = slice(call.named("start"), call.named("end"), call.named("step", 1)).indices(n)
    if step != 1:
        pin(x[d])
        pin(source[d])
        x[d] = fresh(n, pinned=True)
        source[d] = []
    part = slice_dims([expand(dim) for dim in x], d, start, max(start, stop)) if step == 1 else x
    unify_all(zip(part, source, strict=True))
    return [expand(dim) for dim in x]


@axis_rule("diagonal_scatter")
def scatter_diagonal(call: Call) -> Dims:
    """The main diagonal of a square is overwritten: both its sides and what is written have one order. Other diagonals
    are no permutation of theirs, and of a parameter the order could not be merged."""
    x, source = call.dims(0), call.dims(1)
    i, j = (positive(call.named(name), len(x)) for name in ("dim1", "dim2"))
    straight = call.named("offset") == 0 and size_of(x[i]) == size_of(x[j])
    others = [dim for d, dim in enumerate(x) if d not in (i, j)]
    free_of([*others, *source[:-1]], [x[i], x[j], source[-1]])
    unify_all(zip(others, source[:-1], strict=True))
    if straight and not call.meaning(call.args[0]).stored:
        unify_all([(x[i], x[j]), (x[i], source[-1])])
        tell_apart(x[i])
    else:
        for dim in (x[i], x[j], source[-1]):
            pin(dim)
    return [expand(dim) for dim in x]


@axis_rule("masked_scatter")
def masked_scatter(call: Call) -> Dims:
    """Values are taken one after the other, as many as the mask lets through."""
    return pinned_out([dim for t in call.tensors() for dim in call.of(t)], call)


@axis_rule("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(call: Call) -> list[Dims]:
    """Rows of a table, combined bag by bag and column by column; what names the rows, the bags and their weights is a
    list."""
    table, *lists = (call.of(t) for t in call.tensors())
    for dim in (table[0], *(dim for dims in lists for dim in dims)):
        pin(dim)
    first, *others = call.result
    return [
        [fresh(first.shape[0], pinned=True), table[1]],
        *([fresh(n, pinned=True) for n in t.shape] for t in others),
    ]


@axis_rule("embedding_renorm")
def embedding_renorm(call: Call) -> Dims:
    """The rows that are named are scaled to a largest norm, which treats columns alike."""
    table, index = call.dims(0), call.dims(1)
    for dim in (table[0], *index):
        pin(dim)
    free_of([table[0]], [table[1]])
    return [expand(dim) for dim in table]


@axis_rule("embedding")
def embedding(call: Call) -> Dims:
    """Rows of a table, chosen by position in the vocabulary."""
    table, index = call.dims(0), call.dims(1)
    call.follows(call.args[1], table[0])
    free_of(table[1:], table[:1])
    return [*(expand(dim) for dim in [*index, table[1]])]


@axis_rule("index")
def index(call: Call) -> Dims:
    """Indices replace the dimensions that they stand for. Positions in one dimension move with it."""
    x = call.dims(0)
    given = list(call.args[1])
    used = [d for d, i in enumerate(given) if i is not None]
    by = [i for i in given if isinstance(i, torch.Tensor)]
    if any(i.dtype in (torch.bool, torch.uint8) for i in by):
        for mask in by:
            pinned_out(call.of(mask), call)
        return pinned_out(x, call)
    if len(used) == 1:
        call.follows(by[0], x[used[0]])
    else:
        for d in used:
            pin(x[d])
    chosen = broadcast([call.of(i) for i in by])
    adjacent = used == list(range(used[0], used[-1] + 1))
    others = [(d, dim) for d, dim in enumerate(x) if d not in used]
    at = sum(1 for d, _ in others if d < used[0]) if adjacent else 0
    free_of((dim for _, dim in others), (x[d] for d in used))
    rest = [expand(dim) for _, dim in others]
    return [*rest[:at], *chosen, *rest[at:]]


@axis_rule("index_select")
def index_select(call: Call) -> Dims:
    """Some indices of one dimension, in the order of the index."""
    x, (by,) = call.dims(0), call.dims(2) or [[]]
    d = positive(call.args[1], len(x))
    call.follows(call.args[2], x[d])
    free_of((dim for i, dim in enumerate(x) if i != d), [x[d]])
    return [by if i == d else expand(dim) for i, dim in enumerate(x)]


@axis_rule("gather")
def gather(call: Call) -> Dims:
    """Index values name positions of one dimension; all others go along."""
    x, by = call.dims(0), call.dims(2)
    d = positive(call.args[1], len(x))
    call.follows(call.args[2], x[d], aligned=True)
    free_of((dim for i, dim in enumerate(x) if i != d), [x[d]])
    for i, (a, b) in enumerate(zip(x, by, strict=True)):
        if i != d and size_of(a) != size_of(b):
            pin(a)
            pin(b)
            x[i] = by[i] = fresh(call.shape()[i], pinned=True)
    unify_all((a, b) for i, (a, b) in enumerate(zip(x, by, strict=True)) if i != d)
    return [b if i == d else a for i, (a, b) in enumerate(zip(x, by, strict=True))]


@axis_rule("take_along_dim")
def take_along_dim(call: Call) -> Dims:
    """The same, with all other dimensions broadcast."""
    x, by = call.dims(0), call.dims(1)
    if call.named("dim") is None:
        call.meaning(call.args[1]).read()
        return pinned_out([*x, *by], call)
    d = positive(call.named("dim"), len(x))
    call.follows(call.args[1], x[d], aligned=True)
    free_of((dim for i, dim in enumerate(x) if i != d), [x[d]])
    chosen, x[d], by[d] = by[d], [], []
    out = broadcast([x, by])
    return [chosen if i == d else dim for i, dim in enumerate(out)]


@axis_rule("one_hot")
def one_hot(call: Call) -> Dims:
    """A new dimension that stands for the values."""
    stands: Dim = [Factor(Var(call.shape()[-1]))]
    call.follows(call.args[0], stands, aligned=True)
    return [*call.dims(0), expand(stands)]


@axis_rule("meshgrid")
def meshgrid(call: Call) -> list[Dims]:
    """Every operand repeated along the dimensions of the others, where all values are equal."""
    places = list(range(len(call.result)))
    if call.named("indexing", "ij") == "xy":
        places[:2] = places[:2][::-1]
    outs = [[fresh(n) for n in r.shape] for r in call.result]
    for out, place, tensor in zip(outs, places, call.tensors(), strict=True):
        out[place] = next(iter(call.of(tensor)), [])
    return outs


@axis_rule("index_put", "_unsafe_index_put")
def index_put(call: Call) -> Dims:
    """What is written means what ``index`` would read."""
    x, values = call.dims(0), call.dims(2)
    given = list(call.args[1])
    by = [i for i in given if isinstance(i, torch.Tensor)]
    used = [d for d, i in enumerate(given) if i is not None]
    masks = any(i.dtype in (torch.bool, torch.uint8) for i in by)
    if masks and len(by) == 1:
        return _put_by_mask(x, used[0], call.of(by[0]), values)
    if masks or used != list(range(used[0], used[-1] + 1)):
        for tensor in (*by, call.args[2]):
            for dim in call.of(tensor):
                pin(dim)
        return pinned_out(x, call)
    chosen = broadcast([call.of(i) for i in by])
    for dim in (*(x[d] for d in used), *chosen):
        pin(dim)
    x = [fresh(size_of(dim), pinned=True) if d in used else dim for d, dim in enumerate(x)]
    target = [*x[: used[0]], *chosen, *x[used[-1] + 1 :]]
    unify_all(zip(target[::-1], values[::-1], strict=False))
    return [expand(dim) for dim in x]


def _put_by_mask(x: Dims, at: int, mask: Dims, values: Dims) -> Dims:
    """One mask over the dimensions from ``at`` on. One value for all that it lets through looks at each place alone;
    values one after the other are written in the order of the places."""
    behind = at + len(mask)
    one_by_one = len(values) > len(x) - behind and values[len(values) - 1 - (len(x) - behind)]
    if one_by_one:
        for dim in (one_by_one, *mask, *x[at:behind]):
            pin(dim)
    unify_all(zip(x[at:behind], mask, strict=True))
    target: Dims = [*x[:at], one_by_one or [], *x[behind:]]
    unify_all(zip(target[::-1], values[::-1], strict=False))
    return [expand(dim) for dim in x]


@axis_rule("take")
def take(call: Call) -> Dims:
    """Elements by their place in row-major order: of a list, that in its one dimension."""
    x, index = call.dims(0), call.args[1]
    if len(x) == 1:
        call.follows(index, x[0])
    else:
        call.meaning(index).read()
        for dim in x:
            pin(dim)
    return call.dims(1)


@axis_rule("put")
def put(call: Call) -> Dims:
    """Elements are overwritten one after the other, by their place in row-major order."""
    return pinned_out([dim for t in call.tensors() for dim in call.of(t)], call)


@axis_rule(
    "scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy", "index_fill", "index_reduce",
)  # fmt: skip
def scatter(call: Call) -> Dims:
    """One dimension is written by index; along the others source, index and target agree where they are as long."""
    x, index = call.dims(0), call.named("index")
    d = positive(call.args[1], len(x))
    free_of((dim for i, dim in enumerate(x) if i != d), [x[d]])
    followed = index.ndim == len(x) and call.follows(index, x[d], aligned=True)
    if not followed:
        pin(x[d])
        x[d] = fresh(size_of(x[d]), pinned=True)
    together = followed and _written_together(call, index, d)
    for tensor in call.tensors()[1:]:
        other = call.of(tensor)
        if len(other) != len(x):  # a list of indices, or one number
            for dim in other:
                pin(dim)
            continue
        for i, (a, b) in enumerate(zip(x, other, strict=True)):
            if (i == d and not together) or (i != d and size_of(a) != size_of(b)):
                pin(b)
                if i != d:
                    pin(a)
        unify_all((a, b) for i, (a, b) in enumerate(zip(x, other, strict=True)) if size_of(a) == size_of(b) and i != d)
    return [expand(dim) for dim in x]


def _written_together(call: Call, index: torch.Tensor, d: int) -> bool:
    """Whether the order in which a scatter writes does not matter: each number comes with its position, and where two
    have one position they are equal, or combined. The largest stand at positions of their own."""
    source = call.named("src")
    along = [f.var for f in call.of(index)[d]]
    if not isinstance(source, torch.Tensor):
        return source is not None or call.named("value") is not None
    if source.ndim != index.ndim or [f.var for f in call.of(source)[d]] != along:
        return False
    return call.function._schema.name != "aten::scatter" or all(var.orders is not None for var in along)
