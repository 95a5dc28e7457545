"""Operators over positions: pooling, resampling. The last dimensions change, leading ones pass through."""

import re

from fxfuse.passes.algebra import Dims, free_of, fresh, pin, unify_all
from fxfuse.passes.axis_rules.core import Call, axis_rule

_RANK = re.compile(r"(\d)d")


@axis_rule(
    *(f"{kind}_pool{rank}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for rank in (1, 2, 3)),
    *(f"max_pool{rank}d_with_indices" for rank in (1, 2, 3)),
    *(f"upsample_nearest{rank}d" for rank in (1, 2, 3)),
    *(f"_upsample_nearest_exact{rank}d" for rank in (1, 2, 3)),
    *(f"{kind}_pad{rank}d" for kind in ("reflection", "replication") for rank in (1, 2, 3)),
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "fractional_max_pool2d", "fractional_max_pool3d",
    "upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d",
    "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "grid_sampler", "grid_sampler_2d", "grid_sampler_3d",
    "mkldnn_max_pool2d", "quantized_max_pool2d", "max_unpool2d", "max_unpool3d",
)  # fmt: skip
def windows(call: Call) -> Dims | list[Dims]:
    """The spatial dimensions come out as new positions."""
    name = call.function._schema.name
    found = _RANK.search(name)
    rank = int(found.group(1)) if found else len(call.shape()) - 2
    x = call.dims(0)
    for dim in x[len(x) - rank :]:
        pin(dim)
    for tensor in call.tensors()[1:]:
        other = call.of(tensor)
        if "max_unpool" in name:  # indices of positions, channel by channel
            unify_all(zip(x[: len(x) - rank], other[: len(x) - rank], strict=True))
            other = other[len(x) - rank :]
        for dim in other:
            pin(dim)
    free_of(x[: len(x) - rank], x[len(x) - rank :])
    shape = call.shape()
    out = [*x[: len(x) - rank], *(fresh(n, pinned=True) for n in shape[len(x) - rank :])]
    return [out for _ in call.result] if isinstance(call.result, tuple | list) else out
