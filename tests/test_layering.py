import itertools

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import isotonic_regression

from fxfuse.layering import arrange, fold_points, isotonic, ranks

SIZE = (2.0, 0.7)


@st.composite
def graphs(draw):
    count = draw(st.integers(1, 24))
    pairs = list(itertools.combinations(range(count), 2))
    chosen = draw(st.lists(st.sampled_from(pairs), max_size=50, unique=True)) if pairs else []
    return [f"n{i}" for i in range(count)], [(f"n{a}", f"n{b}") for a, b in chosen]


@given(graphs())
def test_boxes_never_overlap_and_stay_inside(graph):
    names, edges = graph
    drawing = arrange(dict.fromkeys(names, SIZE), edges)
    assert drawing.centres.keys() == set(names)
    for (ax, ay), (bx, by) in itertools.combinations(drawing.centres.values(), 2):
        assert abs(ax - bx) >= SIZE[0] - 1e-6 or abs(ay - by) >= SIZE[1] - 1e-6
    for x, y in drawing.centres.values():
        assert SIZE[0] / 2 - 1e-6 <= x <= drawing.size[0] - SIZE[0] / 2 + 1e-6
        assert SIZE[1] / 2 - 1e-6 <= y <= drawing.size[1] - SIZE[1] / 2 + 1e-6


@given(graphs())
def test_lines_of_a_column_point_downwards_and_lanes_avoid_boxes(graph):
    names, edges = graph
    drawing = arrange(dict.fromkeys(names, SIZE), edges)
    for line in drawing.lines:
        if line.smooth:
            assert all(b[1] >= a[1] - 1e-9 for a, b in itertools.pairwise(line.points))
        if line.smooth and line.skip:
            for (x, y), (bx, by) in itertools.product(line.points[1:], drawing.centres.values()):
                assert abs(x - bx) > SIZE[0] / 2 or abs(y - by) > SIZE[1] / 2


@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(0.1, 5)), min_size=1, max_size=20))
def test_isotonic_equals_scikit_learn(rows):
    wanted, weights = [v for v, _ in rows], [w for _, w in rows]
    assert isotonic(wanted, weights) == pytest.approx(isotonic_regression(wanted, sample_weight=weights), abs=1e-9)


def test_a_late_input_stands_just_above_its_reader():
    graph = nx.DiGraph([("x", "a"), ("a", "b"), ("b", "c"), ("y", "c")])
    assert ranks(graph) == {"x": 0, "a": 1, "b": 2, "c": 3, "y": 2}


def test_a_chain_is_straight_and_folds_when_long():
    names = [f"n{i}" for i in range(32)]
    edges = list(itertools.pairwise(names))
    drawing = arrange(dict.fromkeys(names, SIZE), edges)
    columns = sorted({round(x, 6) for x, _ in drawing.centres.values()})
    assert len(columns) == 3
    assert not drawing.dots
    short = arrange(dict.fromkeys(names[:12], SIZE), edges[:11])
    assert len({round(x, 6) for x, _ in short.centres.values()}) == 1


def test_a_dense_block_is_never_folded():
    names = [f"n{i}" for i in range(30)]
    edges = list(itertools.combinations(names, 2))
    assert fold_points({name: i for i, name in enumerate(names)}, edges) == []
    drawing = arrange(dict.fromkeys(names, SIZE), edges)
    assert len({round(x, 6) for x, _ in drawing.centres.values()}) == 1
    assert len(drawing.dots) == sum(b - a > 1 for a, b in itertools.combinations(range(30), 2))
