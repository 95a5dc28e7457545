import pytest
from analyses import analysis, graph_of

from fxfuse.partition_record import TIMES, count_operators, count_words, level_rows, space_rows, summarise


def test_the_record_says_what_the_analysis_holds():
    record = summarise(analysis())
    assert [(row.name, row.boundary, row.parameter_count) for row in record.levels] == [
        ("stem", "relu", 3 * 8 * 9 + 8),
        ("block", "add", 8 * 8 * 9 + 8 + 16),
        ("head", "head", 128 * 5 + 5),
    ]
    assert [(i.name, i.shape, i.dtype) for i in record.inputs] == [("x", (-1, 3, 4, 4), "float32")]
    assert record.outputs == ("head",)
    (space,) = record.spaces
    assert space.written == ("stem.weight[0]", "stem.bias[0]", "block.weight[0]")
    assert space.read == ("block.weight[1]", "head.weight[1]")
    assert space.levels == ("stem", "block")


def test_outputs_are_found_through_glue():
    record = summarise(graph_of(["a", "b"], {"a": ("x",), "b": ("a",)}))
    assert record.outputs == ("b",)


def test_rows_for_a_reader():
    record = summarise(analysis())
    assert level_rows(record)[1] == (
        "block", "Conv2d 3x3, BatchNorm2d, relu, add", "600", f"N{TIMES}8{TIMES}4{TIMES}4", "1", "stream (8)", "stem",
    )  # fmt: skip
    assert level_rows(record)[2][4:] == ("-", "-", "block")
    assert space_rows(record) == [("stream", "8", "-", "stem, block", "block, head", "")]


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0"), (999, "999"), (1000, "1 k"), (25_557_032, "25.56 M"), (7 * 10**9, "7 G")]
)
def test_numbers_in_words(count, words):
    assert count_words(count) == words


def test_operators_are_counted_in_order_of_appearance():
    operators = ["b", "a", "b", "c", "d"]
    assert count_operators(operators) == f"2{TIMES} b, a, c, d"
    assert count_operators(operators, limit=2) == f"2{TIMES} b, a, +2 more"
