"""The parents' weights as they stand, under the target's names: the plain average, and every parent by itself.

The one is what every fusion is compared with, the others are where the joint fit may begin.
"""

import copy
from collections.abc import Sequence

from torch import Tensor, fx

from fxfuse.errors import FuseError
from fxfuse.label_space import LabelSpace
from fxfuse.methods import group_parents
from fxfuse.passes.correspond import Correspondence
from fxfuse.passes.rewrite import fused_state
from fxfuse.presets import find_method


def plain_average(pairs: Correspondence, shares: Sequence[float], union: LabelSpace | None) -> fx.GraphModule | None:
    """The network with the mean of the parents' weights by their shares; ``None`` where their widths differ."""
    state = _mean(pairs, tuple(shares), union)
    if state is None:
        return None
    module = copy.deepcopy(pairs.reference.program.module)
    module.load_state_dict(state)
    return module.eval()


def own_states(
    pairs: Correspondence, shares: Sequence[float], union: LabelSpace | None
) -> dict[str, dict[str, Tensor]]:
    """The own weights of each parent that has a share, by its name, where its widths are the target's."""
    out = {}
    for p, parent in enumerate(pairs.parents):
        alone = tuple(float(q == p) for q in range(len(shares)))
        state = _mean(pairs, alone, union) if shares[p] > 0 else None
        if state is not None:
            out[parent.program.name] = state
    return out


def _mean(pairs: Correspondence, shares: tuple[float, ...], union: LabelSpace | None) -> dict[str, Tensor] | None:
    try:
        grouped = group_parents(pairs, {}, find_method("average"), "uniform", shares, 0, union)
        return fused_state(pairs, grouped.groupings, shares)
    except FuseError:  # whatever the reason, there is no such network
        return None
