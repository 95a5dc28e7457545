"""Apply the groupings to the parents' parameters: the fused graph, before any fitting.

Every tensor of the target's state is ``W = sum_p M_p W_p U_p`` (:mod:`fxfuse.layouts`). A tensor that no space touches
is the parents' weighted mean; integer buffers, which count or index, are the target's own, and so is what the graph
does not use and some parent lacks.
"""

import copy
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxfuse.layouts import merge_tensors
from fxfuse.passes.correspond import Correspondence
from fxfuse.types import Grouping


def rewrite(pairs: Correspondence, groupings: Mapping[int, Grouping], weights: Sequence[float]) -> fx.GraphModule:
    """The target's graph with fused parameters; a copy, in evaluation mode."""
    return with_state(pairs.reference.program.module, fused_state(pairs, groupings, weights))


def with_state(module: fx.GraphModule, state: Mapping[str, Tensor]) -> fx.GraphModule:
    """A copy of a network in evaluation mode, which has the tensors of ``state`` themselves in place of its own; what
    ``state`` lacks is copied. No tensor is there twice on the way."""
    memo: dict[int, Any] = {}
    named = chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
    for name, own in named:
        if name in state and id(own) not in memo:
            given = state[name].detach()
            memo[id(own)] = nn.Parameter(given, own.requires_grad) if isinstance(own, nn.Parameter) else given
    return copy.deepcopy(module, memo).eval()


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
            out[name] = merged.to(own.dtype).contiguous()
    return out


def mask_note(pairs: Correspondence, module: nn.Module) -> str | None:
    """What there is to say of saved masks that ``module``, made of the parents, holds: buffers of zeros and ones in
    every parent that came out with numbers between, because the parents' masks differ where neurons were joined."""
    own = pairs.reference.program.module
    trained = dict(own.named_parameters(remove_duplicate=False))
    states = [parent.program.module.state_dict() for parent in pairs.parents]
    mixed = [
        name
        for name, value in module.state_dict().items()
        if name not in trained
        and all(
            name in names and _is_mask(state[names[name]]) for state, names in zip(states, pairs.names, strict=True)
        )
        and not _is_mask(value)
    ]
    if not mixed:
        return None
    more = f" and {len(mixed) - 1} more" if len(mixed) > 1 else ""
    return (
        f"{mixed[0]}{more} holds zeros and ones in every parent, but not the same ones for neurons that were joined: "
        "the fused network has their mean; where only zeros and ones make sense, write them into it afterwards"
    )


def _is_mask(value: Tensor) -> bool:
    return value.is_floating_point() and bool(((value == 0) | (value == 1)).all())
