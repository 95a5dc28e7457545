"""Whether parents share an ancestor: whether neuron i of one is neuron i of the other.

Networks that were trained from one start (fine-tuned from a base model, or branched off late) keep their neurons in
order; networks with starts of their own do not, and averaging them number by number makes no sense. With ``w_p,i`` the
slices of neuron i in all parameters that touch its space (:mod:`fxfuse.passes.weight_statistics`, all other dimensions
in the parents' own order), the *kinship* of two parents is the part of the neurons i whose most similar neuron of the
other parent, by cosine, is number i:

    kinship = mean over neurons of [ i = argmax_j <w_p,i , w_q,j> / (|w_p,i| |w_q,j|) ]

It is 1 for copies, near 1 after fine-tuning, and 1/n, what chance gives, for strangers.
"""

from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor

from fxfuse.passes.correspond import Correspondence
from fxfuse.passes.solvers.average import identity
from fxfuse.passes.weight_statistics import parameter_scales, weight_statistics
from fxfuse.types import Grouping

RELATED = 0.5
"""The kinship from which on parents count as related. Between 1/n and 1 there is little to be found."""


def kinship(pairs: Correspondence) -> dict[tuple[int, int], float]:
    """The kinship of every two parents, by their numbers; 0 where their widths differ. Empty without neuron spaces."""
    spaces = pairs.reference.axes.spaces
    count = len(pairs.parents)
    if not spaces or count < 2:
        return {}
    if any(len(set(pairs.widths(space.id))) > 1 for space in spaces):
        return dict.fromkeys(combinations(range(count), 2), 0.0)
    groupings = _own_order(pairs)
    scales = parameter_scales(pairs)
    hits = torch.zeros(count, count, dtype=torch.float64)
    whole = 0
    for space in spaces:
        stats = weight_statistics(pairs, space, groupings, (1 / count,) * count, scales)
        if stats is None or space.size < 2:
            continue
        width = stats.widths[0] * stats.outer_widths[0]
        whole += width
        hits += _hits(stats.gram, count, width)
    return {(p, q): float(hits[p, q] + hits[q, p]) / (2 * max(whole, 1)) for p, q in combinations(range(count), 2)}


def _hits(gram: Tensor, count: int, width: int) -> Tensor:
    """How many neurons of each parent have their own number as their nearest in each other."""
    length = gram.diagonal().clamp(min=1e-30).sqrt()
    cosine = (gram / length[:, None] / length[None, :]).reshape(count, width, count, width)
    nearest = cosine.argmax(3)  # parent, neuron, other parent
    return (nearest == torch.arange(width)[None, :, None]).sum(1).double()


def _own_order(pairs: Correspondence) -> Mapping[int, Grouping]:
    count = len(pairs.parents)
    out: dict[int, Grouping] = {}
    for space in pairs.reference.axes.spaces:
        plain = identity(space.id, pairs.widths(space.id)[0], (1 / count,) * count)
        if space.outer is not None:
            blocks = pairs.widths(space.outer)[0]
            merge = tuple(m.expand(blocks, blocks, *m.shape) for m in plain.merge)
            plain = Grouping(space.id, merge, tuple(u.expand(blocks, blocks, *u.shape) for u in plain.unmerge))
        out[space.id] = plain
    return out


def kinship_note(pairs: Correspondence) -> str | None:
    """The least kinship in words, and what follows from it for methods that average number by number."""
    found = kinship(pairs)
    if not found:
        return None
    (p, q), least = min(found.items(), key=lambda pair: pair[1])
    names = f"{pairs.parents[p].program.name} and {pairs.parents[q].program.name}"
    if least >= RELATED:
        return f"the parents share an ancestor: {least:.0%} of the neurons of {names} keep their numbers"
    return (
        f"the parents do not share an ancestor: only {least:.0%} of the neurons of {names} keep their numbers, so "
        "averaging number by number is not meaningful; take a method that matches neurons"
    )
