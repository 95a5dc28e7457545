import re
from pathlib import Path

import pytest
from analyses import result

from fxfuse.errors import OutputError
from fxfuse.partition_record import TIMES
from fxfuse.pictures import Box, draw_graph, draw_levels, draw_scores, role, shade
from fxfuse.types import LevelReport, Score

BOXES = [
    Box("x", "x", terminal=True),
    Box(
        "a",
        "first",
        "1.2 k",
        ((f"2{TIMES} Conv2d 3x3, ReLU", ""), (f"N{TIMES}8{TIMES}4{TIMES}4 · axis 1", "space s (8)")),
        0,
    ),
    Box("b", "costs $5 & <more>", "10", (("Linear",) * 2,)),
]
EDGES = [("x", "a"), ("a", "b"), ("x", "b")]


def texts(svg: Path) -> str:
    return " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg.read_text(encoding="utf-8")))


def test_an_svg_holds_every_text_and_is_the_same_each_time(tmp_path):
    draw_graph(BOXES, EDGES, tmp_path / "a.svg", "the title")
    draw_graph(BOXES, EDGES, tmp_path / "b.svg", "the title")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    found = texts(tmp_path / "a.svg")
    for word in ("the title", "first", "1.2 k", f"2{TIMES} Conv2d 3x3, ReLU", "axis 1", "costs $5 &amp; &lt;more&gt;"):
        assert word in found


def test_a_png_is_the_same_each_time(tmp_path):
    for name in ("a.png", "b.png"):
        draw_graph(BOXES, EDGES, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_long_words_are_shortened(tmp_path):
    draw_graph([Box("a", "n" * 200, "1", (("o" * 300, ""),))], [], tmp_path / "a.svg")
    found = texts(tmp_path / "a.svg")
    assert "…" in found
    assert "n" * 60 not in found


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(OutputError, match=r"\.svg or \.png"):
        draw_graph(BOXES, EDGES, tmp_path / "a.jpg")


def test_colours_of_the_first_spaces_differ():
    fills = {shade(i) for i in range(40)}
    assert len(fills) == 40
    assert shade(None) not in fills


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fused", "fused"),
        ("ensemble (logits)", "ensemble"),
        ("plain average", "average"),
        ("parent 0", "parent"),
        ("my_average_net", "parent"),
    ],
)
def test_roles_follow_the_start_of_a_name(name, expected):
    assert role(name) == expected


def test_scores_show_accuracy_or_say_that_there_are_no_labels(tmp_path):
    assert draw_scores(result().scores, tmp_path / "a.svg")
    assert "accuracy, %" in texts(tmp_path / "a.svg")
    assert "95.71" in texts(tmp_path / "a.svg")
    assert draw_scores((Score("fused", None, None, 0.97),), tmp_path / "b.svg")
    assert "no labels were given" in texts(tmp_path / "b.svg")


def test_nothing_is_drawn_where_nothing_was_measured(tmp_path):
    assert not draw_scores((), tmp_path / "a.svg")
    assert not draw_scores((Score("fused", None),), tmp_path / "a.svg")
    assert not draw_levels((LevelReport("a", None, None, ()),), tmp_path / "a.svg")
    assert not list(tmp_path.iterdir())


def test_two_hundred_levels_still_fit_on_a_page(tmp_path):
    levels = tuple(LevelReport(f"level{i}", "s", 8, (8,), 0.1, 0.2, 0.1) for i in range(200))
    assert draw_levels(levels, tmp_path / "a.svg")
    width = float(re.search(r'width="([\d.]+)pt"', (tmp_path / "a.svg").read_text()).group(1))
    assert width <= 16 * 72
    assert texts(tmp_path / "a.svg").count("level") <= 51
