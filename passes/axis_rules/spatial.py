"""Operators over positions: pooling, resampling, patches, and positions traded for channels."""

import re

from fxfuse.passes.algebra import free_of, regroup, unify_all
from fxfuse.passes.axis_rules.core import Call, at, axis_rule, positive
from fxfuse.passes.axis_rules.shapes import pinned_out, slice_dims
from fxfuse.passes.variables import Dims, expand, fresh, pin, size_of

_RANK = re.compile(r"(\d)d")


@axis_rule(
    *(f"{kind}_pool{rank}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for rank in (1, 2, 3)),
    *(f"max_pool{rank}d_with_indices" for rank in (1, 2, 3)),
    *(f"upsample_nearest{rank}d" for rank in (1, 2, 3)),
    *(f"_upsample_nearest_exact{rank}d" for rank in (1, 2, 3)),
    *(f"{kind}_pad{rank}d" for kind in ("reflection", "replication") for rank in (1, 2, 3)),
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "fractional_max_pool2d", "fractional_max_pool3d",
    "upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d",
    "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "mkldnn_max_pool2d", "quantized_max_pool2d",
    "max_unpool2d", "max_unpool3d",
)  # fmt: skip
def windows(call: Call) -> Dims | list[Dims]:
    """The spatial dimensions come out as new positions."""
    name = call.function._schema.name
    found = _RANK.search(name)
    rank = int(found.group(1)) if found else len(call.shape()) - 2
    x = call.dims(0)
    places = _pooled(call, x[len(x) - rank :])
    for tensor in call.tensors()[1:]:
        other = call.of(tensor)
        if "max_unpool" in name or "fractional" in name:  # indices or draws, channel by channel
            unify_all(zip(x[: len(x) - rank], other[: len(x) - rank], strict=True))
            other = other[len(x) - rank :]
        for dim in other:
            pin(dim)
    free_of(x[: len(x) - rank], x[len(x) - rank :])
    out = [*(expand(dim) for dim in [*x[: len(x) - rank], *places])]
    if not isinstance(call.result, tuple | list):
        return out
    call.points[1] = x[len(x) - rank :]  # where the largest stood
    return [out for _ in call.result]


def _pooled(call: Call, places: Dims) -> Dims:
    """What becomes of rows and columns. Windows that tile a dimension treat their own places alike; all others, and
    resampling and padding, look at the order."""
    sizes = call.shape()[-len(places) :]
    adaptive, kernel = call.named("output_size"), call.named("kernel_size")
    pools = "_pool" in call.function._schema.name and "fractional" not in call.function._schema.name
    out: Dims = []
    for k, (dim, size) in enumerate(zip(places, sizes, strict=True)):
        window = size_of(dim) // size
        tiles = pools and size * window == size_of(dim)
        if tiles and adaptive is None:
            stride = at(call.named("stride") or kernel, k)
            tiles = (at(kernel, k), stride) == (window, window) and at(call.named("padding", 0), k) == 0
            tiles = tiles and at(call.named("dilation", 1), k) == 1
        pieces = regroup(dim, [size, window]) if tiles and not all(f.var.pinned for f in dim) else None
        if pieces is None:
            pin(dim)
        out.append(fresh(size, pinned=True) if pieces is None else pieces[0])
    return out


@axis_rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler")
def grid_sampler(call: Call) -> Dims:
    """Each sample is read at its own places: both have the same samples, and the places come out in the grid's order,
    whatever that is. Rows, columns and coordinates keep theirs."""
    x, grid = call.dims(0), call.dims(1)
    for dim in (*x[2:], grid[-1]):
        pin(dim)
    unify_all([(x[0], grid[0])])
    free_of([*x[:2], *grid[1:-1]], [*x[2:], grid[-1]])
    return [expand(x[0] or grid[0]), expand(x[1]), *(expand(dim) for dim in grid[1:-1])]


@axis_rule("unfold")
def unfold(call: Call) -> Dims:
    """Windows along one dimension. Those that stand side by side are a reshape."""
    x = call.dims(0)
    d = positive(call.args[1], len(x))
    *shape, window = call.shape()
    if x and call.args[3] == window:
        x = slice_dims(x, d, 0, shape[d] * window)
        pieces = regroup(x[d], [shape[d], window])
        if pieces is not None:
            return [*(expand(pieces[0] if i == d else dim) for i, dim in enumerate(x)), expand(pieces[1])]
    pin(x[d])
    windows = [fresh(shape[i], pinned=True) if i == d else dim for i, dim in enumerate(x)]
    return [*windows, fresh(window, pinned=True)]


@axis_rule("im2col")
def im2col(call: Call) -> Dims:
    """Patches: channels x kernel positions, then locations."""
    x = call.dims(0)
    for dim in x[-2:]:
        pin(dim)
    down, across = (fresh(k, pinned=True) for k in call.args[1])
    return [*x[:-3], [*x[-3], *down, *across], fresh(call.shape()[-1], pinned=True)]


@axis_rule("col2im")
def col2im(call: Call) -> Dims:
    """Channels x kernel positions, then locations: back to rows and columns."""
    x = call.dims(0)
    rows, columns = call.args[2]
    pin(x[-1])
    pieces = regroup(x[-2], [size_of(x[-2]) // (rows * columns), rows, columns])
    if pieces is None:
        return pinned_out(x, call)
    pin([*pieces[1], *pieces[2]])
    free_of([*x[:-2], pieces[0]], [*pieces[1:], x[-1]])
    return [*x[:-2], pieces[0], *(fresh(n, pinned=True) for n in call.shape()[-2:])]


@axis_rule("pixel_shuffle")
def pixel_shuffle(call: Call) -> Dims:
    """Channels C r r, rows, columns -> C, rows r, columns r."""
    x = call.dims(0)
    r = call.args[1]
    pieces = regroup(x[-3], [size_of(x[-3]) // (r * r), r, r])
    if pieces is None:
        return pinned_out(x, call)
    channels, down, across = pieces
    return [*x[:-3], channels, [*x[-2], *down], [*x[-1], *across]]


@axis_rule("pixel_unshuffle")
def pixel_unshuffle(call: Call) -> Dims:
    """C, rows r, columns r -> channels C r r, rows, columns."""
    x = call.dims(0)
    r = call.args[1]
    rows, columns = regroup(x[-2], [size_of(x[-2]) // r, r]), regroup(x[-1], [size_of(x[-1]) // r, r])
    if rows is None or columns is None:
        return pinned_out(x, call)
    return [*x[:-3], [*x[-3], *rows[1], *columns[1]], rows[0], columns[0]]


@axis_rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(call: Call) -> Dims:
    """Groups x channels turned over."""
    x = call.dims(0)
    groups = call.args[1]
    pieces = regroup(x[1], [groups, size_of(x[1]) // groups])
    if pieces is None:
        return pinned_out(x, call)
    return [x[0], [*pieces[1], *pieces[0]], *x[2:]]
