"""Variables for the meaning of tensor dimensions, and their unification.

A dimension is a list of *factors* in row-major order, outermost first. A factor stands for one variable: a run of
``size`` indices that may be permuted as one. Operators relate variables, and relating only ever refines them:

* ``union(a, b)``: two variables of one size are the same (a residual addition).
* ``a := Product(b, c)``: a reshape looks inside a dimension (heads x head width, channels x positions). The inner
  variable is *owned* by the outer one: each outer index may order it differently, ``c.outer = b``.
* ``a := Concat(b, c, ...)``: a slice or a concatenation cuts a dimension into segments. A variable owned by ``a`` then
  becomes a *family*: one instance per segment (query, key and value of a packed projection order apart).
* ``pin(a)``: no permutation but the identity commutes with what was done along ``a``.

Ownership is freedom, and giving it up is always sound: wherever a tensor holds ``c`` without its owner, or an operator
pairs two different indices of the owner, ``disown(c)`` makes all orderings of ``c`` one. So the result is exact or
has too few permutations, never too many.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Final, NamedTuple

from fxfuse.types import Concat, Layout, Leaf, Product


class Unset:
    """The owner of a parameter dimension that nothing has been said about yet."""


UNSET: Final = Unset()


class Var:
    """A node of the union-find forest; only roots carry meaning, and ``find`` reaches them."""

    __slots__ = ("family", "link", "outer", "parts", "pinned", "segments", "size", "touched")

    def __init__(self, size: int, *, pinned: bool = False, outer: "Var | Unset | None" = None) -> None:
        self.size = size
        self.pinned = pinned
        self.outer = outer
        self.link: Var | None = None
        self.parts: list[Var] | None = None
        self.segments: list[Var] | None = None
        self.family: dict[Var, Var] = {}
        self.touched = False


class Factor(NamedTuple):
    """One occurrence of a variable in a tensor; ``origin`` is the parameter dimension that it came from unchanged."""

    var: Var
    origin: tuple[str, int] | None = None


Dim = list[Factor]
Dims = list[Dim]


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
    """A dimension of one new variable; of none, if its size is 1."""
    return [] if size == 1 else [Factor(Var(size, pinned=pinned))]


def pin(dim: Iterable[Factor]) -> None:
    """Only the identity is left for every variable in ``dim``."""
    for factor in expand(dim):
        _pin(factor.var)


def _pin(var: Var) -> None:
    root = find(var)
    if root.pinned:
        return
    root.pinned = True
    root.touched = True
    for part in (root.parts or []) + (root.segments or []) + list(root.family.values()):
        _pin(part)


def disown(var: Var) -> None:
    """All indices of the owner of ``var`` order it alike from now on; its family becomes one variable."""
    root = find(var)
    root.outer = None
    for segment in root.segments or []:
        disown(segment)
    family, root.family = list(root.family.values()), {}
    for member in family:
        disown(member)
        union(root, member)


def union(a: Var, b: Var) -> None:
    """``a`` and ``b``, of one size, are the same variable."""
    a, b = find(a), find(b)
    a.touched = b.touched = True
    if a is b:
        return
    if a.parts is not None or b.parts is not None:
        unify([Factor(a)], [Factor(b)])
        return
    for root in (a, b):
        if root.family:
            disown(root)
    a, b = find(a), find(b)
    if a is b:
        return
    _agree_on_owner(a, b)
    a, b = find(a), find(b)
    if a is b:
        return
    if a.segments is None:
        a, b = b, a
    b.link = a
    if a.pinned or b.pinned:
        a.pinned = b.pinned = False
        _pin(b)
        _pin(a)
    if b.segments is not None:
        pieces = cut(a, _ends(b.segments)[:-1])
        for piece, segment in zip(pieces, b.segments, strict=True):
            unify([Factor(piece)], [Factor(segment)])


def _agree_on_owner(a: Var, b: Var) -> None:
    """Give both the one owner that they may keep: their common one, or the other's where one is not decided."""
    if isinstance(a.outer, Unset):
        a.outer = b.outer
    elif isinstance(b.outer, Unset):
        b.outer = a.outer
    elif owner(a) is not owner(b):
        disown(a)
        disown(b)


def _ends(pieces: Sequence[Var]) -> list[int]:
    return list(accumulate(piece.size for piece in pieces))


def cut(var: Var, borders: Sequence[int]) -> list[Var]:
    """Consecutive pieces of ``var`` between the given inner borders (ascending, without 0 and ``var.size``)."""
    root = find(var)
    edges = [0, *borders, root.size]
    if root.parts is None and root.segments is None and borders:
        if root.family:
            disown(root)
            return cut(root, borders)
        sizes = [end - start for start, end in pairwise(edges)]
        root.segments = [Var(size, pinned=root.pinned, outer=root.outer) for size in sizes]
    return [narrow(root, start, end)[0] for start, end in pairwise(edges)]


def narrow(var: Var, start: int, end: int) -> tuple[Var, list[Var] | None]:
    """Indices ``start`` to ``end`` of ``var`` as a variable, and the path of nested segments that leads to it
    (``None`` where it is no segment of the tree but was joined or made for the purpose)."""
    root = find(var)
    if (start, end) == (0, root.size):
        return root, []
    if root.parts is not None:
        return _narrow_product(root, start, end), None
    if root.segments is None:
        cut(root, [border for border in (start, end) if 0 < border < root.size])
        root = find(root)
        if root.segments is None:
            return narrow(root, start, end)
    assert root.segments is not None
    pieces: list[Var] = []
    at = 0
    for segment in root.segments:
        low, high = max(start - at, 0), min(end - at, segment.size)
        if low < high:
            piece, path = narrow(segment, low, high)
            if (low + at, high + at) == (start, end):
                return piece, None if path is None else [segment, *path]
            pieces.append(piece)
        at += segment.size
    return _join(pieces), None


def _narrow_product(root: Var, start: int, end: int) -> Var:
    """A part of an outer factor x inner factors; exact where both borders are multiples of the inner size."""
    first, *rest = expand([Factor(root)])
    inner = size_of(rest)
    if start % inner or end % inner:
        pin([Factor(root)])
        return Var(end - start, pinned=True)
    piece, path = narrow(first.var, start // inner, end // inner)
    return join_product([Factor(piece), *instances(rest, first.var, path)])


def _join(pieces: Sequence[Var]) -> Var:
    """One variable for segments that follow one another."""
    if len(pieces) == 1:
        return pieces[0]
    whole = Var(sum(piece.size for piece in pieces))
    whole.segments = list(pieces)
    whole.pinned = all(find(piece).pinned for piece in pieces)
    return whole


def concat(dims: Sequence[Dim]) -> Dim:
    """The dimension that a concatenation of ``dims`` makes."""
    return [Factor(_join([join_product(expand(dim)) for dim in dims]))]


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


def instances(dim: Iterable[Factor], old: Var, path: list[Var] | None) -> Dim:
    """``dim`` as it is where the index of ``old`` lies in the nested segments ``path``: what ``old`` owns becomes
    an instance. Without a path there is no instance to name: it is disowned."""
    factors = expand(dim)
    if path == []:
        return factors
    if path is None:
        for factor in factors:
            if owner(factor.var) is find(old):
                disown(factor.var)
        return factors
    grand = owner(old)
    owners = [segment if segment.size > 1 else grand for segment in path]
    changed: dict[Var, list[Var | None]] = {find(old): owners}
    out: Dim = []
    for factor in factors:
        outer = owner(factor.var)
        if outer is None or outer not in changed:
            out.append(factor)
            continue
        member, members = find(factor.var), []
        for segment, new_owner in zip(path, changed[outer], strict=True):
            member = _instance(member, segment, new_owner)
            members.append(member)
        changed[find(factor.var)] = list(members)
        out.append(Factor(member, factor.origin))
    return out


def _instance(var: Var, segment: Var, outer: Var | None) -> Var:
    """The member of ``var``'s family for a segment of its owner, or of the variable that owns its owner. Segments are
    told apart by identity: two of them may have become one variable and still hold different instances."""
    root = find(var)
    if segment not in root.family:
        member = Var(root.size, pinned=root.pinned, outer=outer)
        if root.segments is not None:
            member.segments = [_instance(part, segment, outer) for part in root.segments]
        root.family[segment] = member
    return root.family[segment]


def split_product(var: Var, outer_size: int) -> list[Var] | None:
    """``var`` as an outer factor of ``outer_size`` times an inner one, or ``None`` (and ``var`` pinned)."""
    root = find(var)
    inner_size, remainder = divmod(root.size, outer_size)
    if remainder:
        _pin(root)
        return None
    a = Var(outer_size, pinned=root.pinned, outer=root.outer)
    b = Var(inner_size, pinned=root.pinned, outer=a)
    if root.segments is not None and not root.pinned:
        if root.family:
            disown(root)
            return split_product(root, outer_size)
        sizes = [divmod(segment.size, inner_size) for segment in root.segments]
        halves = (
            [] if any(r for _, r in sizes) else [_halves(s, n) for s, (n, _) in zip(root.segments, sizes, strict=True)]
        )
        a.segments = [pair[0] for pair in halves if pair is not None]
        b.family = {pair[0]: pair[1] for pair in halves if pair is not None}
        failed = len(a.segments) != len(root.segments)
    else:
        pairs = {segment: _halves(member, outer_size) for segment, member in root.family.items()}
        a.family = {segment: pair[0] for segment, pair in pairs.items() if pair is not None}
        b.family = {segment: pair[1] for segment, pair in pairs.items() if pair is not None}
        failed = len(a.family) != len(root.family)
    if failed:
        _pin(root)
        return None
    root.segments = None
    root.family = {}
    root.parts = [a, b]
    root.touched = True
    return [a, b]


def _halves(var: Var, outer_size: int) -> tuple[Var, Var] | None:
    pieces = regroup([Factor(var)], [outer_size, var.size // outer_size])
    return None if pieces is None else (join_product(pieces[0]), join_product(pieces[1]))


def regroup(dim: Iterable[Factor], sizes: Sequence[int]) -> Dims | None:
    """``dim`` as several dimensions of the given sizes (row-major), or ``None`` if no factor can be cut that way."""
    queue = expand(dim)[::-1]
    out: Dims = []
    for size in sizes:
        taken: Dim = []
        need = size
        while need > 1:
            if not queue:
                return None
            factor = queue.pop()
            if factor.var.size <= need:
                need, remainder = divmod(need, factor.var.size)
                if remainder:
                    return None
                taken.append(factor)
                continue
            halves = split_product(factor.var, need)
            if halves is None:
                return None
            taken.append(Factor(halves[0], factor.origin))
            queue.append(Factor(halves[1], factor.origin))
            need = 1
        out.append(taken)
    return out if not queue else None


def unify(a: Iterable[Factor], b: Iterable[Factor]) -> None:
    """Two dimensions of one size mean the same: refine both until they agree, or pin both where they cannot."""
    left, right = expand(a)[::-1], expand(b)[::-1]
    while left and right:
        x, y = left.pop(), right.pop()
        if x.var.size == y.var.size:
            union(x.var, y.var)
        else:
            if x.var.size < y.var.size:
                x, y, left, right = y, x, right, left
            halves = None if x.var.size % y.var.size else split_product(x.var, y.var.size)
            if halves is None:
                pin([x, y, *left, *right])
                return
            union(halves[0], y.var)
            left.append(Factor(halves[1], x.origin))
        left, right = expand(reversed(left))[::-1], expand(reversed(right))[::-1]


def check_owners(dims: Iterable[Iterable[Factor]]) -> None:
    """Disown every variable of a tensor that holds it without its owner, or with its owner twice."""
    again = True
    while again:
        again = False
        roots = [factor.var for dim in dims for factor in expand(dim)]
        for root in roots:
            if isinstance(root.outer, Unset) or root.outer is None:
                continue
            outer = owner(root)
            if outer is None or roots.count(outer) != 1:
                disown(root)
                again = True
                break


def settle(dims: Iterable[Iterable[Factor]]) -> None:
    """Variables of a computed value that nobody owns stay so."""
    for dim in dims:
        for factor in expand(dim):
            if isinstance(factor.var.outer, Unset):
                factor.var.outer = None


def tidy(dims: Sequence[Sequence[Factor]]) -> bool:
    """Give up what a resolved layout cannot say about a stored tensor; whether anything changed.

    A family is told apart by the segments of an owner that stands before it in the same dimension; an ordinary
    ownership has a free owner that is itself owned by nobody and occurs once in the tensor.
    """
    found = [leaves(dim) for dim in dims]
    for index, dim in enumerate(dims):
        if _tidy(expand(dim), [var for other, vars_ in enumerate(found) if other != index for var in vars_]):
            return True
    return False


def _tidy(factors: Dim, elsewhere: list[Var]) -> bool:
    for index, factor in enumerate(factors):
        root, rest = factor.var, factors[index + 1 :]
        before = [f.var for f in factors[:index]]
        if root.segments is not None and any(owner(f.var) is root for f in rest):
            if _tidy_families(root, rest):
                return True
            pieces = ([Factor(s), *instances(rest, root, [s])] for s in root.segments)
            return any(_tidy(piece, elsewhere) for piece in pieces)
        if root.pinned:
            continue
        if root.segments is not None:
            if any(_tidy(expand([Factor(s)]), elsewhere) for s in root.segments):
                return True
            continue
        outer = owner(root)
        plain = (
            outer is not None and outer.segments is None and not outer.pinned and (before + elsewhere).count(outer) == 1
        )
        if root.family or (outer is not None and not plain):
            disown(root)
            return True
        if outer is not None and owner(outer) is not None:
            disown(outer)
            return True
    return False


def _tidy_families(root: Var, rest: Dim) -> bool:
    """Families behind the segmented ``root``, and those of what they own in turn, are told apart by its segments."""
    assert root.segments is not None
    chain = {root}
    for factor in rest:
        if owner(factor.var) in chain:
            if not all(any(key is segment for segment in root.segments) for key in factor.var.family):
                disown(factor.var)
                return True
            chain.add(factor.var)
    return False


def layout_of(dim: Iterable[Factor], space_of: dict[Var, int]) -> Layout:
    """The resolved meaning of a dimension; variables that are no space (pinned, or nobody's) become plain runs."""
    parts: list[Layout] = []
    factors = expand(dim)
    for index, factor in enumerate(factors):
        root = factor.var
        rest = factors[index + 1 :]
        if root.segments is not None and any(owner(f.var) is root for f in rest):
            pieces = [layout_of([Factor(s), *instances(rest, root, [s])], space_of) for s in root.segments]
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
        if root.segments is not None and any(owner(f.var) is root for f in rest):
            for segment in root.segments:
                found.extend(leaves([Factor(segment), *instances(rest, root, [segment])]))
            break
        if root.segments is not None and not root.pinned:
            for segment in root.segments:
                found.extend(leaves([Factor(segment)]))
        else:
            found.append(root)
    return found
