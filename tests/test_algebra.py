"""Laws of variables and their unification."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxfuse.passes.algebra import (
    check_owners,
    concat,
    cut,
    disown,
    free_of,
    instances,
    narrow,
    regroup,
    split_product,
    unify,
    unify_all,
    union,
)
from fxfuse.passes.resolution import leaves
from fxfuse.passes.variables import (
    Dim,
    Factor,
    Orders,
    Var,
    alike,
    expand,
    find,
    fresh,
    inside,
    join_product,
    owner,
    pin,
    size_of,
    unordered,
)


def dim(*sizes: int) -> Dim:
    return [Factor(Var(size)) for size in sizes]


def roots(d: Dim) -> list[Var]:
    return [factor.var for factor in expand(d)]


sizes = st.lists(st.integers(2, 6), min_size=1, max_size=4)


@settings(deadline=None)
@given(sizes, sizes)
def test_unification_is_symmetric_and_keeps_sizes(a: list[int], b: list[int]) -> None:
    """Either way the same cuts and the same pins, and both sides are one."""
    total = size_of(dim(*a))
    b = [*b, total] if size_of(dim(*b)) != total else b
    if size_of(dim(*b)) != total:
        b = a[::-1]
    results = []
    for swap in (False, True):
        x, y = dim(*a), dim(*b)
        unify(*((y, x) if swap else (x, y)))
        assert size_of(expand(x)) == size_of(expand(y)) == total
        if not any(var.pinned for var in roots(x) + roots(y)):
            assert roots(x) == roots(y)
        results.append([(var.size, var.pinned) for var in roots(x) + roots(y)])
    assert results[0] == results[1]


@given(sizes)
def test_unifying_twice_changes_nothing(a: list[int]) -> None:
    x, y = dim(*a), dim(size_of(dim(*a)))
    unify(x, y)
    before = roots(x)
    unify(y, x)
    assert roots(x) == before == roots(y)


def test_a_split_owns_its_inner_part() -> None:
    x = Var(12)
    halves = split_product(x, 3)
    assert halves is not None
    a, b = halves
    assert (a.size, b.size) == (3, 4)
    assert owner(b) is a
    assert owner(a) is None
    assert roots([Factor(x)]) == [a, b]


def test_a_split_that_does_not_divide_pins() -> None:
    x = Var(12)
    assert split_product(x, 5) is None
    assert x.pinned


def test_a_variable_twice_in_a_dimension_is_cut_once() -> None:
    """The Gram matrix of neurons, flattened: both occurrences keep the same parts."""
    x = Var(4)
    pieces = regroup([Factor(x), Factor(x)], [2, 2, 2, 2])
    assert pieces is not None
    a, b, c, d = (piece[0].var for piece in pieces)
    assert find(a) is find(c)
    assert find(b) is find(d)
    assert roots([Factor(x)]) == [find(a), find(b)]


def test_ownership_survives_only_with_the_owner() -> None:
    x = Var(12)
    a, b = split_product(x, 3) or []
    check_owners([[Factor(a)], [Factor(b)]])
    assert owner(b) is a
    check_owners([[Factor(b)]])
    assert owner(b) is None


def test_an_owner_twice_is_no_owner() -> None:
    a, b = split_product(Var(12), 3) or []
    check_owners([[Factor(a)], [Factor(a)], [Factor(b)]])
    assert owner(b) is None


def test_owners_are_looked_for_inside_segments() -> None:
    """A concatenation of what an owner owns, without the owner."""
    a, b = split_product(Var(12), 3) or []
    joined = concat([[Factor(b)], dim(5)])
    check_owners([[Factor(a)], joined])
    assert owner(b) is a
    check_owners([joined])
    assert owner(b) is None


def test_mixing_an_owner_disowns_what_is_kept() -> None:
    a, b = split_product(Var(12), 3) or []
    free_of([[Factor(b)]], [[Factor(a)]])
    assert owner(b) is None


def test_owners_are_unified_before_what_they_own() -> None:
    """Width before heads in both tensors: the order of dimensions must not cost the ownership."""
    x, y = Var(12), Var(12)
    a, b = split_product(x, 3) or []
    c, d = split_product(y, 3) or []
    unify_all([([Factor(b)], [Factor(d)]), ([Factor(a)], [Factor(c)])])
    assert find(b) is find(d)
    assert owner(b) is find(a)


def test_different_owners_leave_none() -> None:
    a, b = split_product(Var(12), 3) or []
    c, d = split_product(Var(12), 3) or []
    union(b, d)
    assert owner(find(b)) is None
    assert find(a) is not find(c)


def test_an_owner_further_up_is_common_ground() -> None:
    """Grouped queries: what depends on (group, repetition) meets what depends on the group alone."""
    group, rest = split_product(Var(24), 2) or []
    repetition, width = split_product(rest, 3) or []
    other = Var(width.size, outer=group)
    union(width, other)
    assert owner(find(width)) is group
    assert owner(repetition) is group


def test_families_tell_segments_apart_until_disowned() -> None:
    a, b = split_product(Var(12), 3) or []
    first, second, third = cut(a, [1, 2])
    members = [instances([[Factor(b)]], a, [s])[0][0].var for s in (first, second, third)]
    assert len({find(m) for m in members}) == 3
    assert instances([[Factor(b)]], a, [second])[0][0].var is members[1]
    disown(b)
    assert {find(m) for m in members} == {find(b)}


def test_families_follow_their_owner_into_another() -> None:
    """Two owners cut alike become one: the members of the one are still found through the segments of the other."""
    a, b = split_product(Var(12), 3) or []
    old = cut(a, [1, 2])
    member = instances([[Factor(b)]], a, [old[1]])[0][0].var
    other = Var(3)
    cut(other, [1, 2])
    union(other, a)
    piece, path = narrow(a, 1, 2)
    assert piece.size == 1
    assert find(instances([[Factor(b)]], a, path)[0][0].var) is find(member)


def test_families_whose_segments_are_gone_are_given_up() -> None:
    """Two owners cut differently become one: no member may be made afresh for what already has one."""
    a, b = split_product(Var(24), 6) or []
    segment = cut(a, [3])[0]
    member = instances([[Factor(b)]], a, [segment])[0][0].var
    other = Var(6)
    cut(other, [2, 4])
    union(other, a)
    _, path = narrow(a, 0, 2)
    found = instances([[Factor(b)]], a, path)[0][0].var
    assert find(found) is find(member) is find(b)


def test_what_is_owned_inside_segments_becomes_an_instance_too() -> None:
    a, b = split_product(Var(12), 3) or []
    joined = concat([[Factor(b)], [Factor(b)]])
    first = cut(a, [1])[0]
    once = instances([joined], a, [first])[0]
    again = instances([joined], a, [first])[0]
    assert leaves(once) == leaves(again)
    assert b not in inside(once)
    disown(b)
    assert {find(v) for v in leaves(once)} == {find(b)}


def test_an_instance_of_a_segment_that_nobody_owns_is_itself() -> None:
    a, b = split_product(Var(12), 3) or []
    joined = concat([[Factor(b)], [Factor(b)]])
    disown(b)
    assert leaves(instances([joined], a, [cut(a, [1])[0]])[0]) == [b, b]


@given(st.lists(st.integers(2, 5), min_size=2, max_size=4), st.lists(st.integers(2, 5), min_size=2, max_size=4))
def test_concatenations_meet_in_the_common_refinement(a: list[int], b: list[int]) -> None:
    b = [*b, sum(a) - sum(b)] if sum(b) < sum(a) - 1 else a[::-1]
    x, y = concat([dim(n) for n in a]), concat([dim(n) for n in b])
    unify(x, y)
    borders = {sum(a[:k]) for k in range(len(a) + 1)} | {sum(b[:k]) for k in range(len(b) + 1)}
    expected = [high - low for low, high in pairwise(sorted(borders))]
    assert [var.size for var in leaves(x)] == expected
    assert leaves(x) == leaves(y)


def test_pinning_reaches_parts_segments_and_families() -> None:
    x = Var(12)
    a, b = split_product(x, 3) or []
    member = instances([[Factor(b)]], a, [cut(a, [1])[0]])[0][0].var
    pin([Factor(x)])
    assert all(find(v).pinned for v in (a, b, member, *cut(a, [1])))


def test_a_pin_crosses_a_union() -> None:
    x, y = Var(4), Var(4)
    pin([Factor(x)])
    union(x, y)
    assert find(y).pinned


def test_copies_take_any_owner() -> None:
    """Equal values along a dimension: whatever they are paired with may keep its freedom."""
    a, b = split_product(Var(12), 3) or []
    copies = fresh(4)
    union(copies[0].var, b)
    assert owner(find(b)) is a


def test_a_union_that_refines_its_own_sides_ends_well() -> None:
    """Disowning a family may split the variable that is being united: nothing may be lost on the way."""
    outer = Var(3)
    pieces = cut(outer, [2])
    b = Var(12, outer=outer)
    six, two = Var(6), Var(2)
    b.family = {pieces[0]: join_product([Factor(six), Factor(two)]), pieces[1]: Var(12)}
    w = Var(12)
    union(b, w)
    assert size_of(expand([Factor(w)])) == 12
    assert roots([Factor(w)]) == roots([Factor(b)]) == [find(six), find(two)]


@pytest.mark.parametrize(("start", "stop"), [(0, 4), (4, 12), (2, 6)])
def test_a_run_inside_a_product_is_exact_only_at_its_borders(start: int, stop: int) -> None:
    x = Var(12)
    split_product(x, 3)
    piece, _ = narrow(x, start, stop)
    assert piece.size == stop - start
    assert find(piece).pinned == bool(start % 4 or stop % 4)


def test_dimensions_of_unequal_sizes_keep_their_order() -> None:
    for a, b in ((dim(8), dim(4)), (dim(4), dim(2, 4)), (dim(6), dim(4))):
        unify(a, b)
        assert all(var.pinned for var in roots(a) + roots(b))


def test_copies_stay_copies_in_their_pieces_until_they_are_unified() -> None:
    copies, numbers = fresh(8), dim(4)
    first, second = cut(copies[0].var, [4])
    assert alike([Factor(first)])
    assert not alike(copies)
    unify([Factor(second)], numbers)
    assert alike([Factor(first)])
    assert not alike([Factor(second)])


def test_who_tells_apart_what_has_no_order_pins_what_it_comes_from() -> None:
    for told in (pin, lambda d: unify(d, dim(4)), lambda d: cut(d[0].var, [2]), lambda d: regroup(d, [2, 2])):
        row, column = dim(3), dim(6)
        ranks = unordered(4, Orders(column, row))
        free_of([ranks], [column])
        assert not column[0].var.pinned
        told(ranks)
        assert column[0].var.pinned
    row, column = dim(3), dim(6)
    free_of([unordered(4, Orders(column, row))], [row])
    assert column[0].var.pinned
