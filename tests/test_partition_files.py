import stat
import xml.etree.ElementTree as ET

import networkx as nx
import pytest
from analyses import analysis, chain, dense, graph_of

from fxfuse.dumps import write_partition
from fxfuse.partition_files import WRITERS, boxes, dot_text, markdown_table, markdown_text, mermaid_text
from fxfuse.partition_record import TIMES, summarise


@pytest.mark.parametrize("suffix", sorted(WRITERS))
def test_every_format_is_written_twice_the_same(tmp_path, suffix, monkeypatch):
    monkeypatch.setenv("PATH", "")
    for name in ("a", "b"):
        write_partition(analysis(), tmp_path / f"{name}{suffix}")
    first = (tmp_path / f"a{suffix}").read_bytes()
    assert first == (tmp_path / f"b{suffix}").read_bytes()
    if suffix != ".png":
        assert "block" in first.decode("utf-8")


def test_graphml_reads_back_as_the_level_graph(tmp_path):
    write_partition(analysis(), tmp_path / "p.graphml")
    graph = nx.read_graphml(tmp_path / "p.graphml")
    assert set(graph.edges) == {("x", "relu"), ("relu", "add"), ("add", "head")}
    assert graph.nodes["add"]["label"] == "block"
    assert graph.nodes["add"]["parameters"] == 600
    assert graph.nodes["head"]["output"]


def test_boxes_have_one_colour_per_space_and_one_output():
    drawn, lines = boxes(summarise(analysis()))
    assert [box.title for box in drawn] == [f"x  N{TIMES}3{TIMES}4{TIMES}4", "stem", "block", "head", "output"]
    assert drawn[1].colour == drawn[2].colour != drawn[3].colour
    assert lines[-1] == ("head", drawn[-1].key)


def test_a_level_called_output_does_not_clash_with_the_end():
    drawn, _ = boxes(summarise(graph_of(["output_0", "a"], {"output_0": ("x",), "a": ("output_0",)})))
    assert len({box.key for box in drawn}) == len(drawn)


def test_svg_and_html_are_well_formed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    for source in (analysis(), dense(8)):
        write_partition(source, tmp_path / "p.svg")
        ET.parse(tmp_path / "p.svg")
    write_partition(analysis(), tmp_path / "p.html")
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 1
    assert "<?xml" not in page
    assert page.count("<tr>") == 4


def test_two_hundred_levels_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    write_partition(chain(200), tmp_path / "p.svg")
    assert "l199" in (tmp_path / "p.svg").read_text(encoding="utf-8")


def fake_dot(folder, script):
    dot = folder / "dot"
    dot.write_text(f"#!/bin/sh\n{script}\n")
    dot.chmod(dot.stat().st_mode | stat.S_IEXEC)


def test_graphviz_draws_where_it_is_there_and_works(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    fake_dot(tmp_path, "cat > /dev/null; echo '<svg>by dot</svg>'")
    write_partition(analysis(), tmp_path / "p.svg")
    assert "by dot" in (tmp_path / "p.svg").read_text()
    fake_dot(tmp_path, "exit 1")
    write_partition(analysis(), tmp_path / "p.svg")
    assert "by dot" not in (tmp_path / "p.svg").read_text()
    assert "block" in (tmp_path / "p.svg").read_text()


def test_dot_and_mermaid_escape_what_their_languages_read():
    source = summarise(graph_of(["a", "b"], {"a": ("x",), "b": ("a",)}))
    odd = type(source)(**{f: getattr(source, f) for f in source.__slots__} | {"model": 'q"uote\\'})
    assert r'label="q\"uote\\: 2 levels' in dot_text(odd)
    mermaid = mermaid_text(source)
    assert mermaid.startswith("flowchart TD\n")
    assert mermaid.count("-->") == 3
    assert "```mermaid\nflowchart TD" in markdown_text(source)


def test_markdown_cells_cannot_break_the_table():
    assert markdown_table(("a", "b"), [("x|y", "1\n2")], right=("b",)) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 2 |\n"
