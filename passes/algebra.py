"""Unification of the variables that tensor dimensions are made of (:mod:`fxfuse.passes.variables`).

Operators relate variables, and relating only ever refines them:

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

from fxfuse.passes.variables import (
    Dim,
    Dims,
    Factor,
    Unset,
    Var,
    depth,
    expand,
    find,
    join,
    join_product,
    owned_by,
    owner,
    owners_above,
    owners_of,
    pin,
    pin_var,
    settle,
    size_of,
    slot,
    tell_apart,
)


def disown(var: Var) -> None:
    """All indices of the owner of ``var`` order it alike from now on; its family becomes one variable."""
    root = find(var)
    root.outer = None
    if root.orders is not None:
        pin_var(root)
    for segment in root.segments or []:
        disown(segment)
    family, root.family = list(root.family.values()), {}
    for member in family:
        disown(member)
        union(root, member)


def union(a: Var, b: Var) -> None:
    """``a`` and ``b``, of one size, are the same variable."""
    a, b = find(a), find(b)
    if a is b:
        return
    for var in (a, b):
        if var.orders is not None:
            pin_var(var)
    if a.parts is not None or b.parts is not None:
        unify([Factor(a)], [Factor(b)])
        return
    if a.family or b.family:
        held, other = (a, b) if a.family else (b, a)
        if _one_apart_for_each(other, owner(held)):
            other.link = held
            if not other.uniform:
                tell_apart([Factor(held)])
            if other.pinned:
                pin_var(held)
            return
        disown(held)
        union(a, b)  # which may have been refined by that
        return
    _agree_on_owner(a, b)
    if find(a) is not a or find(b) is not b or a.parts is not None or b.parts is not None:
        union(a, b)
        return
    if a.segments is None:
        a, b = b, a
    b.link = a
    uniform = a.uniform and b.uniform
    if b.segments is None and not b.uniform:
        tell_apart([Factor(a)])
    a.uniform = uniform
    if a.pinned or b.pinned:
        a.pinned = b.pinned = False
        pin_var(b)
        pin_var(a)
    if b.segments is not None:
        _align(a, b.segments)


def _one_apart_for_each(var: Var, outer: Var | None) -> bool:
    """Whether ``var`` is one variable that each index of ``outer`` may order its own way: the instances of a family are
    no freer, and may stand for it."""
    return outer is not None and owner(var) is outer and not var.family and var.segments is None


def _align(var: Var, segments: list[Var]) -> None:
    """The segments of ``var`` agree with those of another that it has become one with, and take their slots."""
    ends = list(accumulate(segment.size for segment in segments))
    cut(var, ends[:-1])
    for segment, end in zip(segments, ends, strict=True):
        piece, path = narrow(var, end - segment.size, end)
        place = slot(path[0]) if path is not None and len(path) == 1 else None
        old = slot(segment)
        if old.slot is None and place is not old:
            old.slot = place or old
        unify([Factor(piece)], [Factor(segment)])


def _agree_on_owner(a: Var, b: Var) -> None:
    """Give both the one owner that they may keep: their common one, or the other's where one is not decided."""
    if isinstance(a.outer, Unset) or a.uniform:
        a.outer = b.outer
    elif isinstance(b.outer, Unset) or b.uniform or owner(a) in owners_above(b):
        b.outer = a.outer
    elif owner(b) in owners_above(a):
        a.outer = b.outer
    else:
        disown(a)
        disown(b)


def cut(var: Var, borders: Sequence[int]) -> list[Var]:
    """Consecutive pieces of ``var`` between the given inner borders (ascending, without 0 and ``var.size``)."""
    root = find(var)
    edges = [0, *borders, root.size]
    if root.parts is None and root.segments is None and borders:
        if root.orders is not None:
            pin_var(root)
        if root.family:
            disown(root)
            return cut(root, borders)
        sizes = [end - start for start, end in pairwise(edges)]
        root.segments = [Var(size, pinned=root.pinned, outer=root.outer) for size in sizes]
        _inherit(root, root.segments)
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
    return join(pieces), None


def _narrow_product(root: Var, start: int, end: int) -> Var:
    """A part of an outer factor x inner factors; exact where both borders are multiples of the inner size."""
    first, *rest = expand([Factor(root)])
    inner = size_of(rest)
    if start % inner or end % inner:
        pin([Factor(root)])
        return Var(end - start, pinned=True)
    piece, path = narrow(first.var, start // inner, end // inner)
    return join_product([Factor(piece), *instances([rest], first.var, path)[0]])


def concat(dims: Sequence[Dim]) -> Dim:
    """The dimension that a concatenation of ``dims`` makes."""
    return [Factor(join([join_product(expand(dim)) for dim in dims]))]


def instances(dims: Iterable[Iterable[Factor]], old: Var, path: list[Var] | None) -> Dims:
    """``dims`` as they are where the index of ``old`` lies in the nested segments ``path``: what ``old`` owns becomes
    an instance. Without a path there is no instance to name: it is disowned."""
    out = [expand(dim) for dim in dims]
    if path is None:
        free_of(out, [[Factor(old)]])
        return [expand(dim) for dim in out]
    current, grand = find(old), owner(old)
    for segment in path:
        if not any(owned_by(dim, (current,)) for dim in out):
            break
        owners: dict[Var, Var | None] = {current: segment if segment.size > 1 else grand}
        places = [(depth([factor]), i, j) for i, dim in enumerate(out) for j, factor in enumerate(dim)]
        moved = {(i, j): _at_segment([out[i][j]], segment, owners) for _, i, j in sorted(places)}
        out = [expand(f for j in range(len(dim)) for f in moved[i, j]) for i, dim in enumerate(out)]
        current = find(segment)
    return out


def _at_segment(dim: Iterable[Factor], segment: Var, owners: dict[Var, Var | None]) -> Dim:
    """``dim`` with an instance in the place of each variable that one of ``owners`` (mapped to their own instances)
    owns. A segmented variable is what its segments are."""
    out: Dim = []
    for factor in expand(dim):
        root, outer = factor.var, owner(factor.var)
        if root.segments is not None and owned_by([factor], owners):
            member = join([join_product(_at_segment([Factor(s)], segment, owners)) for s in root.segments])
        elif outer is not None and outer in owners:
            member = _instance(root, segment, owners[outer])
        else:
            out.append(factor)
            continue
        owners[find(root)] = member
        out.append(Factor(member, factor.origin))
    return expand(out)


def _instance(root: Var, segment: Var, outer: Var | None) -> Var:
    """The member of ``root``'s family for a segment of its owner, or of the variable that owns its owner. Segments are
    told apart by identity: two of them may have become one variable and still hold different instances."""
    place = slot(segment)
    for key, known in root.family.items():
        if slot(key) is place:
            return known
        if slot(key).slot is not None:
            disown(root)
            return find(root)
    root.family[segment] = Var(root.size, pinned=root.pinned, outer=outer)
    root.family[segment].uniform = root.uniform
    return root.family[segment]


def split_product(var: Var, outer_size: int) -> list[Var] | None:
    """``var`` as an outer factor of ``outer_size`` times an inner one, or ``None`` (and ``var`` pinned)."""
    root = find(var)
    inner_size, remainder = divmod(root.size, outer_size)
    if remainder:
        pin_var(root)
        return None
    if root.parts is not None:
        pieces = regroup([Factor(root)], [outer_size, inner_size])
        return None if pieces is None else [join_product(piece) for piece in pieces]
    if root.orders is not None:
        pin_var(root)
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
        for pair in halves:
            if pair is None:
                continue
            if pair[0] in b.family:  # two segments that are one variable cannot hold two instances
                unify([Factor(b.family[pair[0]])], [Factor(pair[1])])
            b.family.setdefault(*pair)
        failed = len(a.segments) != len(root.segments)
    else:
        pairs = {segment: _halves(member, outer_size) for segment, member in root.family.items()}
        a.family = {segment: pair[0] for segment, pair in pairs.items() if pair is not None}
        b.family = {segment: pair[1] for segment, pair in pairs.items() if pair is not None}
        failed = len(a.family) != len(root.family)
    if failed:
        pin_var(root)
        return None
    root.segments = None
    root.family = {}
    root.parts = [a, b]
    _inherit(root, root.parts)
    return [a, b]


def _inherit(root: Var, pieces: list[Var]) -> None:
    """What holds equal values does so in its pieces, of which each may be unified with others."""
    for piece in pieces:
        piece.uniform = root.uniform
    root.uniform = False


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
            opened = expand([factor])  # an earlier cut may have gone through this one too
            if len(opened) > 1:
                queue.extend(opened[::-1])
                continue
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
    """Two dimensions mean the same: refine both until they agree, or pin both where they cannot, as those of unequal
    sizes cannot."""
    left, right = expand(a)[::-1], expand(b)[::-1]
    if size_of(left) != size_of(right):
        pin([*left, *right])
        return
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
    roots = [factor.var for dim in dims for factor in expand(dim)]
    while sum([not _owned_once(root, roots) for root in roots]):
        roots = [factor.var for dim in dims for factor in expand(dim)]


def _owned_once(root: Var, present: list[Var]) -> bool:
    """Whether ``root`` and its segments find their owners in a tensor of the roots ``present``; if not, disown."""
    good = True
    if any(present.count(outer) != 1 for outer in owners_of(root)) and not (root.pinned and root.orders is not None):
        disown(root)
        good = False
    for segment in root.segments or ():
        parts = [factor.var for factor in expand([Factor(segment)])]
        context = present if len(parts) == 1 else [*present, *parts]
        for part in parts:
            good = _owned_once(part, context) and good
    return good


def free_of(kept: Iterable[Iterable[Factor]], mixed: Iterable[Iterable[Factor]]) -> None:
    """Disown what stands in ``kept`` and is owned by a variable of ``mixed``: an operator that combines different
    indices of the owner needs all its orderings to be one. What nobody owns yet shall have no owner later."""
    owners = {factor.var for dim in mixed for factor in expand(dim)}
    for dim in kept if owners else ():
        settle([dim])
        for var in owned_by(dim, owners):
            disown(var)


def unify_all(pairs: Iterable[tuple[Dim, Dim]]) -> None:
    """Unify corresponding dimensions of two tensors, owners before what they own; those of size 1 say nothing."""
    for a, b in sorted(((a, b) for a, b in pairs if a and b), key=lambda pair: max(map(depth, pair))):
        unify(a, b)
