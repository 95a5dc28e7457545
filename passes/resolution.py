"""What the variables of a dimension come to in the end: layouts.

A layout says less than the algebra: an owner is a space that occurs once in the tensor and is owned by nobody,
and a family is written out segment by segment, as a concatenation, behind the owner that it goes with. ``tidy`` gives
up the freedom that a stored tensor cannot express so; then ``layout_of`` writes it down.
"""

from collections.abc import Iterable, Sequence
from math import lgamma

from fxfuse.passes.algebra import disown, instances
from fxfuse.passes.variables import Dim, Factor, Var, expand, owned_by, owner, slot
from fxfuse.types import Concat, Layout, Leaf, Product


def tidy(dims: Sequence[Sequence[Factor]]) -> bool:
    """Give up what a resolved layout cannot say about a stored tensor; whether anything changed.

    A family is told apart by the segments of an owner that stands before it in the same dimension; an ordinary
    ownership has a free owner that is itself owned by nobody and occurs once in the tensor.
    """
    found = [leaves(dim) for dim in dims]
    whole = {factor.var for dim in dims for factor in expand(dim)}
    for index, dim in enumerate(dims):
        if _tidy(expand(dim), [var for other, vars_ in enumerate(found) if other != index for var in vars_], whole):
            return True
    return False


def _tidy(factors: Dim, elsewhere: list[Var], whole: set[Var]) -> bool:
    """``whole`` holds the variables that all elements of these factors are indexed by, not some segments alone."""
    whole = whole.union(factor.var for factor in factors)
    for index, factor in enumerate(factors):
        root, rest = factor.var, factors[index + 1 :]
        others = [*leaves(factors[:index]), *leaves(rest), *elsewhere]
        if root.segments is not None and owned_by(rest, (root,)):
            if _tidy_families(root, rest):
                return True
            pieces = (expand([Factor(s), *instances([rest], root, [s])[0]]) for s in root.segments)
            return any(_tidy(piece, [*leaves(factors[:index]), *elsewhere], whole) for piece in pieces)
        if root.pinned or root.size == 1:
            continue
        if root.segments is not None:
            if any(_tidy(expand([Factor(s)]), others, whole) for s in root.segments):
                return True
            continue
        outer = owner(root)
        plain = outer in whole and outer.segments is None and not outer.pinned and others.count(outer) == 1
        if root.family or (outer is not None and not plain):
            disown(root)
            return True
        if outer is not None and (above := owner(outer)) is not None:
            disown(root if _orders(outer, above) > _orders(root, outer) else outer)
            return True
    return False


def _orders(inner: Var, outer: Var) -> float:
    """How much choice there is if each index of ``outer`` orders ``inner`` its own way, beyond one order for all:
    the logarithm of ``(inner!) ** (outer - 1)``."""
    return (outer.size - 1) * lgamma(inner.size + 1)


def _tidy_families(root: Var, rest: Dim) -> bool:
    """Families behind the segmented ``root``, and those of what they own in turn, are told apart by its segments."""
    assert root.segments is not None
    chain = {root}
    for factor in rest:
        for var in owned_by([factor], chain):
            if not all(any(slot(key) is slot(segment) for segment in root.segments) for key in var.family):
                disown(var)
                return True
            chain.add(var)
    return False


def layout_of(dim: Iterable[Factor], space_of: dict[Var, int]) -> Layout:
    """The resolved meaning of a dimension; variables that are no space (pinned, or nobody's) become plain runs."""
    parts: list[Layout] = []
    factors = expand(dim)
    for index, factor in enumerate(factors):
        root = factor.var
        rest = factors[index + 1 :]
        if root.segments is not None and owned_by(rest, (root,)):
            pieces = [layout_of([Factor(s), *instances([rest], root, [s])[0]], space_of) for s in root.segments]
            parts.append(Concat(tuple(pieces)))
            break
        if root.segments is not None and not root.pinned:
            parts.append(Concat(tuple(layout_of([Factor(s)], space_of) for s in root.segments)))
        else:
            parts.append(Leaf(root.size, None if root.pinned else space_of.get(root)))
    if not parts:
        return Leaf(1)
    return parts[0] if len(parts) == 1 else Product(tuple(parts))


def leaves(dim: Iterable[Factor]) -> list[Var]:
    """The roots that a resolved dimension consists of, families taken apart as ``layout_of`` does."""
    found: list[Var] = []
    factors = expand(dim)
    for index, factor in enumerate(factors):
        root = factor.var
        rest = factors[index + 1 :]
        if root.segments is not None and owned_by(rest, (root,)):
            for segment in root.segments:
                found.extend(leaves([Factor(segment), *instances([rest], root, [segment])[0]]))
            break
        if root.segments is not None and not root.pinned:
            for segment in root.segments:
                found.extend(leaves([Factor(segment)]))
        else:
            found.append(root)
    return found
