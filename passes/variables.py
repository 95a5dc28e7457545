"""What tensor dimensions are made of: factors, variables, and who owns whom.

A dimension is a list of *factors* in row-major order, outermost first. A factor stands for one variable: a run of
``size`` indices that may be permuted as one. What is known of a variable stands at the root of its class: that it is a
product of ``parts`` or a concatenation of ``segments``, that it is ``pinned``, and which ``outer`` variable *owns* it,
so that each index of that one may order it differently. Variables are made and read here, and related to one another
in :mod:`fxfuse.passes.algebra`.
"""

from collections.abc import Container, Iterable, Sequence
from typing import Final, NamedTuple


class Unset:
    """The owner of a parameter dimension that nothing has been said about yet."""


UNSET: Final = Unset()
NESTED = 8
"""So many owners one over the other are looked at; no network nests them deeper."""


class Var:
    """A node of the union-find forest; only roots carry meaning, and ``find`` reaches them.

    ``family`` maps segments of the owner to instances; ``slot`` leads from a segment to the one in whose place it
    stands since their wholes became one (to itself, where it stands nowhere any more). ``uniform``: all indices hold
    equal values, and nothing has been unified with it yet (a variable of pieces is not, its pieces may be).
    ``orders``: the indices stand in an order that nobody knows.
    """

    __slots__ = ("family", "link", "orders", "outer", "parts", "pinned", "segments", "size", "slot", "uniform")

    def __init__(self, size: int, *, pinned: bool = False, outer: "Var | Unset | None" = None) -> None:
        self.size = size
        self.pinned = pinned
        self.outer = outer
        self.link: Var | None = None
        self.parts: list[Var] | None = None
        self.segments: list[Var] | None = None
        self.family: dict[Var, Var] = {}
        self.slot: Var | None = None
        self.uniform = False
        self.orders: Orders | None = None


class Factor(NamedTuple):
    """One occurrence of a variable in a tensor; ``origin`` is the parameter dimension that it came from unchanged."""

    var: Var
    origin: tuple[str, int] | None = None


Dim = list[Factor]
Dims = list[Dim]


class Orders(NamedTuple):
    """What an order that nobody knows follows from: the order of the dimension ``of``, at each index of ``rows`` on its
    own. Who tells the indices apart, or meets those of several rows, pins ``of``."""

    of: Dim
    rows: Dim


def find(var: Var) -> Var:
    """The root of ``var``'s class."""
    root = var
    while root.link is not None:
        root = root.link
    while var.link is not None:
        var.link, var = root, var.link
    return root


def owner(var: Var) -> Var | None:
    """The root of the variable that owns ``var``, looking through products to their innermost part."""
    outer = find(var).outer
    if outer is None or isinstance(outer, Unset):
        return None
    root = find(outer)
    while root.parts is not None:
        root = find(root.parts[-1])
    return root


def expand(dim: Iterable[Factor]) -> Dim:
    """The factors of ``dim`` with products opened and roots in place of their members."""
    out: Dim = []
    for factor in dim:
        root = find(factor.var)
        if root.parts is None:
            out.append(Factor(root, factor.origin))
        else:
            out.extend(expand(Factor(part, factor.origin) for part in root.parts))
    return out


def size_of(dim: Iterable[Factor]) -> int:
    """Number of indices of a dimension."""
    size = 1
    for factor in dim:
        size *= factor.var.size
    return size


def fresh(size: int, *, pinned: bool = False) -> Dim:
    """A dimension of one new variable (of none, if its size is 1): equal values, or ``pinned`` positions."""
    if size == 1:
        return []
    var = Var(size, pinned=pinned)
    var.uniform = not pinned
    return [Factor(var)]


def alike(dim: Iterable[Factor]) -> bool:
    """Whether all indices of a dimension hold equal values, so that it agrees with any other as it stands."""
    factors = expand(dim)
    return bool(factors) and all(f.var.uniform and not f.var.family for f in factors)


def tell_apart(dim: Iterable[Factor]) -> None:
    """The indices of a dimension hold values of their own from now on."""
    for factor in expand(dim):
        factor.var.uniform = False
        if factor.var.orders is not None:
            pin_var(factor.var)
        for piece in [*(factor.var.segments or ()), *factor.var.family.values()]:
            tell_apart([Factor(piece)])


def unordered(size: int, orders: Orders) -> Dim:
    """A dimension of indices that stand in an order that nobody knows."""
    dim = fresh(size, pinned=all(f.var.pinned for f in expand(orders.of)))
    for factor in dim:
        factor.var.uniform = False
        factor.var.orders = None if factor.var.pinned else orders
    return dim


def join_product(dim: Sequence[Factor]) -> Var:
    """One variable for the factors of a dimension."""
    kept = [factor.var for factor in dim if factor.var.size != 1]
    if len(kept) == 1:
        return kept[0]
    whole = Var(size_of(dim))
    if kept:
        whole.parts = kept
    whole.pinned = all(find(var).pinned for var in kept)
    return whole


def join(pieces: Sequence[Var]) -> Var:
    """One variable for segments that follow one another."""
    if len(pieces) == 1:
        return pieces[0]
    whole = Var(sum(piece.size for piece in pieces))
    whole.segments = list(pieces)
    whole.pinned = all(find(piece).pinned for piece in pieces)
    owners = {owner(piece) for piece in pieces}
    if len(owners) == 1:
        whole.outer = owners.pop()
    return whole


def inside(dim: Iterable[Factor]) -> list[Var]:
    """The variables of a dimension and those inside their segments."""
    found = [factor.var for factor in expand(dim)]
    for var in list(found):
        for segment in var.segments or ():
            found.extend(inside([Factor(segment)]))
    return found


def owned_by(dim: Iterable[Factor], owners: Container[Var]) -> list[Var]:
    """The variables of a dimension, those inside segments included, that one of ``owners`` owns."""
    return [var for var in inside(dim) if any(outer in owners for outer in owners_of(var))]


def owners_of(var: Var) -> list[Var]:
    """The owner of a variable, or the rows of one in an order of its own for each."""
    root = find(var)
    if root.orders is not None:
        return [factor.var for factor in expand(root.orders.rows)]
    outer = owner(root)
    return [] if outer is None else [outer]


def depth(dim: Dim) -> int:
    """How many owners stand one over the other above a dimension, of which ``NESTED`` count."""
    return max((len(owners_above(factor.var)) for factor in dim if owner(factor.var) is not None), default=0)


def owners_above(var: Var) -> list[Var | None]:
    """The owner, its owner and so on: what is ordered apart for each index of the first may be ordered apart for each
    index of any later one instead."""
    found: list[Var | None] = [owner(var)]
    while (last := found[-1]) is not None and len(found) < NESTED and owner(last) is not None:
        found.append(owner(last))
    return found


def slot(segment: Var) -> Var:
    """The segment in whose place ``segment`` stands, as the key of families."""
    while segment.slot is not None and segment.slot is not segment:
        segment = segment.slot
    return segment


def settle(dims: Iterable[Iterable[Factor]]) -> None:
    """Variables that nobody owns stay so."""
    for dim in dims:
        for var in inside(dim):
            if isinstance(var.outer, Unset):
                var.outer = None


def pin(dim: Iterable[Factor]) -> None:
    """Only the identity is left for every variable in ``dim``."""
    for factor in expand(dim):
        pin_var(factor.var)


def pin_var(var: Var) -> None:
    """Only the identity is left for ``var`` and what it is made of."""
    root = find(var)
    if root.pinned:
        return
    root.pinned = True
    root.uniform = False
    for part in (root.parts or []) + (root.segments or []) + list(root.family.values()):
        pin_var(part)
    if root.orders is not None:
        pin(root.orders.of)
