"""Tensors through layouts: merging is the formula of the page, permutations are undone, neurons are read off."""

import pytest
import torch
from torch import Tensor

from fxfuse.layouts import (
    merge_tensors,
    neurons,
    permutation_groupings,
    resized,
    spaces_in,
)
from fxfuse.types import Concat, Grouping, Leaf, Product, Space, TensorAxes

A, B, INNER = Space(0, 3, "a"), Space(1, 4, "b"), Space(2, 2, "inner", outer=0)
SPACES = (A, B, INNER)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def groupings(parents: int = 2) -> dict[int, Grouping]:
    """Any matrices, even ones that no solver would make: the formula is linear."""
    out = {}
    for space in (A, B):
        merge = tuple(random(5, space.size, seed=10 * space.id + p).abs() for p in range(parents))
        unmerge = tuple(random(space.size, 5, seed=100 + 10 * space.id + p).abs() for p in range(parents))
        out[space.id] = Grouping(space.id, merge, unmerge)
    inner_merge = tuple(random(5, 3, 6, 2, seed=50 + p).abs() for p in range(parents))
    inner_unmerge = tuple(random(3, 5, 2, 6, seed=60 + p).abs() for p in range(parents))
    out[2] = Grouping(2, inner_merge, inner_unmerge)
    return out


def test_one_written_and_one_read_space() -> None:
    """``W = sum_p M_a W_p U_b``: merge rows are not normalised where one space is written."""
    axes = TensorAxes((Leaf(3, 0), Leaf(4, 1)), frozenset({(1, 1)}))
    g, weights = groupings(), [random(3, 4, seed=p) for p in range(2)]
    expected = sum(g[0].merge[p] @ weights[p] @ g[1].unmerge[p] for p in range(2))
    torch.testing.assert_close(merge_tensors(weights, [axes, axes], SPACES, g, (0.5, 0.5)), expected)


def test_two_written_spaces_share_the_mass() -> None:
    axes = TensorAxes((Leaf(3, 0), Leaf(4, 1)))
    g, weights = groupings(), [random(3, 4, seed=p) for p in range(2)]
    total = sum(g[0].merge[p] @ weights[p] @ g[1].merge[p].T for p in range(2))
    mass = sum(torch.outer(g[0].merge[p].sum(1), g[1].merge[p].sum(1)) for p in range(2))
    torch.testing.assert_close(merge_tensors(weights, [axes, axes], SPACES, g, (0.5, 0.5)), total / mass)


def test_what_no_space_writes_takes_the_parents_weights() -> None:
    axes = TensorAxes((Leaf(7), Leaf(4, 1)), frozenset({(1, 1)}))
    g, weights = groupings(), [random(7, 4, seed=p) for p in range(2)]
    expected = 0.3 * weights[0] @ g[1].unmerge[0] + 0.7 * weights[1] @ g[1].unmerge[1]
    torch.testing.assert_close(merge_tensors(weights, [axes, axes], SPACES, g, (0.3, 0.7)), expected)


def test_owned_spaces_go_pair_by_pair() -> None:
    """``out[(a, i)] = sum_p sum_b M_a[a, b] M_inner[a, b][i, j] x[(b, j)]``."""
    axes = TensorAxes((Product((Leaf(3, 0), Leaf(2, 2))),))
    g, vectors = groupings(), [random(6, seed=p) for p in range(2)]
    expected = sum(
        torch.einsum("ab,abij,bj->ai", g[0].merge[p], g[2].merge[p], vectors[p].view(3, 2)).flatten() for p in range(2)
    )
    torch.testing.assert_close(merge_tensors(vectors, [axes, axes], SPACES, g, (0.5, 0.5)), expected)


def flattened(p: int, read: bool) -> Tensor:
    """The matrix of parent ``p`` on the flattened (block, neuron) axis: fused by parent's."""
    g = groupings()
    outer, inner = (g[0].unmerge[p].T, g[2].unmerge[p].permute(1, 0, 3, 2)) if read else (g[0].merge[p], g[2].merge[p])
    return torch.einsum("ab,abij->aibj", outer, inner).reshape(30, 6)


def test_a_square_tensor_of_blocks_has_a_pair_for_each_side() -> None:
    """A weight from heads to the same heads: each side's blocks decide about that side's neurons alone."""
    own = Product((Leaf(3, 0), Leaf(2, 2)))
    axes = TensorAxes((own, own), frozenset({(1, 0), (1, 2)}))
    weights = [random(6, 6, seed=p) for p in range(2)]
    expected = sum(flattened(p, False) @ weights[p] @ flattened(p, True).T for p in range(2))
    torch.testing.assert_close(merge_tensors(weights, [axes, axes], SPACES, groupings(), (0.5, 0.5)), expected)


def test_inner_neurons_in_another_dimension_go_with_their_block() -> None:
    """A grouped convolution: blocks along the first dimension, the neurons that each reads along the second."""
    axes = TensorAxes((Leaf(3, 0), Leaf(2, 2), Leaf(7)), frozenset({(1, 2)}))
    g, weights = groupings(), [random(3, 2, 7, seed=p) for p in range(2)]
    expected = sum(torch.einsum("ab,baji,bjk->aik", g[0].merge[p], g[2].unmerge[p], weights[p]) for p in range(2))
    torch.testing.assert_close(merge_tensors(weights, [axes, axes], SPACES, g, (0.5, 0.5)), expected)


def test_a_parent_of_which_nothing_is_taken_adds_nothing() -> None:
    axes = TensorAxes((Product((Leaf(3, 0), Leaf(2, 2))),))
    g, vectors = groupings(), [random(6, seed=p) for p in range(2)]
    alone = {**g, 0: Grouping(0, (g[0].merge[0], torch.zeros(5, 3).double()), g[0].unmerge)}
    expected = flattened(0, False) @ vectors[0]
    torch.testing.assert_close(merge_tensors(vectors, [axes, axes], SPACES, alone, (1.0, 0.0)), expected)


@pytest.mark.parametrize("layout", [
    Product((Leaf(3, 0), Leaf(5))),
    Product((Leaf(3, 0), Leaf(4, 1))),
    Concat((Leaf(3, 0), Leaf(4, 1), Leaf(3, 0))),
    Product((Leaf(3, 0), Concat((Leaf(2, 2), Leaf(4, 1), Leaf(2, 2))))),
    Product((Leaf(2), Concat((Product((Leaf(3, 0), Leaf(2, 2))), Leaf(4, 1))))),
])  # fmt: skip
@pytest.mark.parametrize("roles", ["written", "read", "mixed"])
def test_read_parts_of_any_nesting_are_merged_beside_written_ones(layout, roles) -> None:  # type: ignore[no-untyped-def]
    """A permutation of one parent at weight 1 is a permutation, whichever side a dimension is on: the mass is one."""
    read = {"written": [], "read": [0, 1, 2], "mixed": [1, 2]}[roles]
    axes = TensorAxes((layout, Leaf(4, 1)), frozenset((0, space) for space in read))
    x = random(layout.size, 4)
    g = permutation_groupings(SPACES, torch.Generator().manual_seed(3))
    once = merge_tensors([x], [axes], SPACES, g, (1.0,))
    everything_written = merge_tensors([x], [TensorAxes(axes.dims)], SPACES, g, (1.0,))
    torch.testing.assert_close(once, everything_written)
    torch.testing.assert_close(once.flatten().sort().values, x.flatten().sort().values)


def test_the_identity_changes_nothing() -> None:
    eye = {s.id: Grouping(s.id, (torch.eye(s.size),), (torch.eye(s.size),)) for s in (A, B)}
    eye[2] = Grouping(2, (torch.eye(2).expand(3, 3, 2, 2),), (torch.eye(2).expand(3, 3, 2, 2),))
    axes = TensorAxes((Product((Leaf(3, 0), Leaf(2, 2))), Concat((Leaf(4, 1), Leaf(3)))), frozenset({(1, 1)}))
    x = random(6, 7)
    torch.testing.assert_close(merge_tensors([x], [axes], SPACES, eye, (1.0,)), x)


def test_neurons_come_as_rows_by_width() -> None:
    value = random(6, 4, 5)
    (rows,) = neurons(value, TensorAxes((Leaf(6), Leaf(4, 1), Leaf(5))), B)
    torch.testing.assert_close(rows, value.permute(0, 2, 1).reshape(-1, 4))


def test_neurons_of_an_owned_space_come_block_after_block() -> None:
    value = random(5, 6)
    (rows,) = neurons(value, TensorAxes((Leaf(5), Product((Leaf(3, 0), Leaf(2, 2))))), INNER)
    torch.testing.assert_close(rows, value)


def test_every_occurrence_of_a_space_is_found() -> None:
    value = random(5, 8)
    first, second = neurons(value, TensorAxes((Leaf(5), Concat((Leaf(4, 1), Leaf(4, 1))))), B)
    torch.testing.assert_close(torch.cat([first, second], 1), value)


def test_foreign_neurons_are_sorted_so_that_rows_compare() -> None:
    value = random(5, 3, 4)
    axes = TensorAxes((Leaf(5), Leaf(3, 0), Leaf(4, 1)))
    (rows,) = neurons(value, axes, B)
    (other,) = neurons(value[:, [2, 0, 1]], axes, B)
    torch.testing.assert_close(rows, other)


def test_layouts_resize_and_list_their_spaces() -> None:
    layout = Concat((Product((Leaf(3, 0), Leaf(2, 2))), Leaf(4, 1), Leaf(7)))
    assert resized(layout, {0: 6, 1: 8, 2: 1}) == Concat((Product((Leaf(6, 0), Leaf(1, 2))), Leaf(8, 1), Leaf(7)))
    assert spaces_in(layout) == [0, 2, 1]
