"""Apply the groupings to the parents' parameters: the fused graph, before any fitting.

Every tensor of the target's state is ``W = sum_p M_p W_p U_p`` (:mod:`fxfuse.layouts`). A tensor that no space touches
is the parents' weighted mean; integer buffers, which count or index, are the target's own, and so is what the graph
does not use and some parent lacks.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from fxfuse.layouts import merge_tensors
from fxfuse.passes.correspond import Correspondence
from fxfuse.types import Grouping


def rewrite(pairs: Correspondence, groupings: Mapping[int, Grouping], weights: Sequence[float]) -> fx.GraphModule:
    """The target's graph with fused parameters; a copy, in evaluation mode."""
    target = pairs.reference
    fused = copy.deepcopy(target.program.module)
    fused.load_state_dict(fused_state(pairs, groupings, weights))
    return fused.eval()


def fused_state(
    pairs: Correspondence, groupings: Mapping[int, Grouping], weights: Sequence[float]
) -> dict[str, Tensor]:
    """The fused tensors under the target's names."""
    target = pairs.reference
    states = [parent.program.module.state_dict() for parent in pairs.parents]
    out: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, own in target.program.module.state_dict().items():
            meaning = target.axes.state.get(name)
            known = meaning is not None and all(name in names for names in pairs.names)
            if meaning is None or not known or not (own.is_floating_point() or own.is_complex()):
                out[name] = own.clone()
                continue
            tensors = [state[names[name]] for state, names in zip(states, pairs.names, strict=True)]
            axes = [parent.axes.state[names[name]] for parent, names in zip(pairs.parents, pairs.names, strict=True)]
            merged = merge_tensors(tensors, axes, target.axes.spaces, groupings, weights)
            out[name] = merged.to(own.dtype)
    return out
