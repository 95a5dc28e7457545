"""Operators over positions: pooling, resampling. The last dimensions change, leading ones pass through."""

import re

from fxfuse.passes.algebra import Dims, free_of, fresh, pin, unify_all
from fxfuse.passes.axis_rules.core import Call, axis_rule

_RANK = re.compile(r"(\d)d")


@axis_rule(
    *(
        f"{kind}_pool{rank}d{suffix}"
        for kind in ("max", "avg", "adaptive_max", "adaptive_avg", "_adaptive_avg", "fractional_max", "lp")
        for rank in (1, 2, 3)
        for suffix in ("", "_with_indices")
    ),
    *(f"upsample_{mode}{rank}d" for mode in ("nearest", "linear", "_nearest_exact") for rank in (1, 2, 3)),
    "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d", "_upsample_nearest_exact2d",
    "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_upsample_nearest_exact1d", "_upsample_nearest_exact3d",
    "upsample_linear1d", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
    "replication_pad2d", "replication_pad3d", "grid_sampler", "grid_sampler_2d", "grid_sampler_3d",
    "max_pool2d_with_indices", "mkldnn_max_pool2d", "quantized_max_pool2d", "max_unpool2d",
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
        if name == "aten::max_unpool2d":  # indices of positions, channel by channel
            unify_all(zip(x[: len(x) - rank], other[: len(x) - rank], strict=True))
            other = other[len(x) - rank :]
        for dim in other:
            pin(dim)
    free_of(x[: len(x) - rank], x[len(x) - rank :])
    shape = call.shape()
    out = [*x[: len(x) - rank], *(fresh(n, pinned=True) for n in shape[len(x) - rank :])]
    return [out for _ in call.result] if isinstance(call.result, tuple | list) else out
