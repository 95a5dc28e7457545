"""The parents' weights as they stand, under the target's names: the plain average, and every parent by itself.

The one is what every fusion is compared with, the others are where the joint fit may begin.
"""

from collections.abc import Sequence

from torch import Tensor, fx

from fxfuse.errors import FuseError
from fxfuse.label_space import LabelSpace
from fxfuse.methods import group_parents
from fxfuse.passes.calibrate import Round
from fxfuse.passes.correspond import Correspondence
from fxfuse.passes.rewrite import fused_state, with_state
from fxfuse.presets import find_method


def plain_average(pairs: Correspondence, shares: Sequence[float], union: LabelSpace | None) -> fx.GraphModule | None:
    """The network with the mean of the parents' weights by their shares; ``None`` where their widths differ."""
    state = _mean(pairs, tuple(shares), union)
    return None if state is None else with_state(pairs.reference.program.module, state)


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
        rounds = [Round(pairs.reference.axes.spaces, {})]
        grouped = group_parents(pairs, rounds, find_method("average"), "uniform", shares, 0, union)
        return fused_state(pairs, grouped.groupings, shares)
    except FuseError:  # whatever the reason, there is no such network
        return None
