"""Label maps: the union they make, where each parent's classes stand in it, and what is refused."""

import pytest
import torch

from fxfuse.errors import MethodError
from fxfuse.label_space import UNKNOWN, class_axis, label_space

PARENTS, SHARES = ("a", "b"), (0.5, 0.5)


def made(*maps, shares=SHARES):
    space = label_space(maps, PARENTS[: len(maps)], shares)
    assert space is not None
    return space


def test_names_make_the_union_in_the_order_in_which_they_occur():
    space = made(["dog", "cat"], ["fox", "dog"])
    assert space.names == ("dog", "cat", "fox")
    assert space.maps == ((0, 1), (2, 0))
    assert not space.complete
    assert made(["dog", "cat"], ["cat", "dog"]).complete


def test_numbers_are_the_rows_themselves():
    space = made([3, 0], [1, 2])
    assert space.names == ("0", "1", "2", "3")
    assert space.maps == ((3, 0), (1, 2))
    assert space.known().tolist() == [[True, False, False, True], [False, True, True, False]]


def test_labels_and_rows_go_to_the_union_and_back():
    space = made(["dog", "cat"], ["fox", "dog"])
    labels = torch.tensor([0, 1, 2, 2, UNKNOWN, 7])
    assert space.own_labels(0, labels).tolist() == [0, 1, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN]
    assert space.own_labels(1, labels).tolist() == [1, UNKNOWN, 0, 0, UNKNOWN, UNKNOWN]
    assert space.spread(1, torch.tensor([[1.0, 2.0]]), -1.0).tolist() == [[2.0, -1.0, 1.0]]


def test_a_class_is_merged_from_the_parents_that_know_it():
    space = made(["dog", "cat"], ["fox", "dog"], shares=(0.25, 0.75))
    grouping = space.grouping(7, (0.25, 0.75))
    assert grouping.space == 7
    assert grouping.merge[0].tolist() == [[0.25, 0], [0, 1], [0, 0]]
    assert grouping.merge[1].tolist() == [[0, 0.75], [0, 0], [1, 0]]
    assert torch.cat(grouping.merge, 1).sum(1).tolist() == [1, 1, 1]
    assert all((u == (m > 0).double().T).all() for m, u in zip(grouping.merge, grouping.unmerge, strict=True))
    alone = space.grouping(7, (1.0, 0.0))  # what nobody with a share knows is taken from whoever knows it
    assert torch.cat(alone.merge, 1).sum(1).tolist() == [1, 1, 1]


def test_no_maps_at_all_mean_the_same_classes():
    assert label_space([None, None], PARENTS, SHARES) is None


@pytest.mark.parametrize(
    ("maps", "shares", "message"),
    [
        ([["a", "b"]], SHARES, "one map per parent. Got 1 for 2"),
        ([["a", "b"], None], SHARES, "b has no label map"),
        ([["a", "b"], ["c"]], SHARES, "of b must have one entry per class, two or more"),
        ([["a", "b"], ["c", "c"]], SHARES, "of b has 'c' twice"),
        ([["a", "b"], [0, 1]], SHARES, "all names or all numbers"),
        ([[0, 1], [3, 4]], SHARES, "No parent knows class 2"),
        ([[0, 1], [-1, 2]], SHARES, "negative"),
        (["ab", ["c", "d"]], SHARES, "of a must be a list"),
        ([["a", 1.5], ["c", "d"]], SHARES, "names or of whole numbers"),
        ([[True, False], ["c", "d"]], SHARES, "names or of whole numbers"),
        ([["a", "b"], ["a", "c"]], (1.0, 0.0), "'c' is known only to parents whose share is 0"),
    ],
)
def test_refused(maps, shares, message):
    with pytest.raises(MethodError, match=message):
        label_space(maps, PARENTS, shares)


def test_where_the_classes_are():
    assert class_axis(torch.Size((5, 3))) == 1
    assert class_axis(torch.Size((5, 7, 3))) == 2
    assert class_axis(torch.Size((5, 3, 8, 8))) == 1
    assert class_axis(torch.Size((5, 3, 7)), torch.Size((5, 7))) == 1
    assert class_axis(torch.Size((5,))) is None
