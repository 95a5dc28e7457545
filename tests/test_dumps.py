import json

import pytest
from analyses import analysis, chain, dense
from rich.console import Console

from fxfuse.dumps import level_table, opaque_table, read_partition, space_table, write_partition
from fxfuse.errors import OutputError
from fxfuse.partition_files import WRITERS
from fxfuse.partition_record import TIMES, summarise
from fxfuse.types import Opaque

OPAQUE = (Opaque("torch.roll", "roll", "swin.py:142", "no [rule]"),)


def shown(table) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


@pytest.mark.parametrize("source", [analysis("net", OPAQUE), chain(3), dense(6)], ids=["residual", "chain", "dense"])
def test_json_reads_back_as_the_same_record(tmp_path, source):
    write_partition(source, tmp_path / "p.json")
    assert read_partition(tmp_path / "p.json") == summarise(source)


def test_the_json_file_has_the_documented_keys(tmp_path):
    write_partition(analysis(), tmp_path / "p.json")
    data = json.loads((tmp_path / "p.json").read_text())
    assert (data["format"], data["version"]) == ("fxfuse.partition", 1)
    assert sorted(data) == [
        "format", "front_end", "granularity", "inputs", "levels", "model", "notes", "opaque", "outputs", "spaces",
        "version",
    ]  # fmt: skip
    assert sorted(data["levels"][0]) == [
        "boundary", "index", "inputs", "name", "neuron_axis", "nodes", "operators", "parameter_count", "parameters",
        "shape", "space",
    ]  # fmt: skip


def test_an_unknown_suffix_names_the_known_ones(tmp_path):
    with pytest.raises(OutputError, match=r"must be one of \.dot, \.graphml, \.gv, \.html, \.json"):
        write_partition(analysis(), tmp_path / "p.pdf")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        write_partition(analysis(), tmp_path / "none" / "p.json")


def test_a_file_that_cannot_be_finished_leaves_nothing(tmp_path, monkeypatch):
    def full(_, path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(WRITERS, ".svg", full)
    (tmp_path / "p.svg").write_text("before")
    with pytest.raises(OutputError, match=r"cannot write .*p\.svg: No space left on device"):
        write_partition(analysis(), tmp_path / "p.svg")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("p.svg", "before")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read a partition"),
        ("[]", "'format' must be"),
        ('{"format": "fxfuse.partition", "version": 9}', "of version 9"),
        ('{"format": "fxfuse.partition", "version": 1}', "not a complete partition"),
    ],
)
def test_a_file_that_is_no_partition_is_refused(tmp_path, text, message):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(OutputError, match=message):
        read_partition(tmp_path / "p.json")


def test_tables_show_names_and_take_brackets_literally():
    source = analysis("net", OPAQUE)
    levels = shown(level_table(source))
    for word in (
        "net: 3 levels, 1.469 k parameters",
        f"N{TIMES}8{TIMES}4{TIMES}4",
        "stream (8)",
        "Conv2d 3x3",
        "block",
    ):
        assert word in levels
    assert "stem, block" in shown(space_table(source))
    assert "no [rule]" in shown(opaque_table(source))
    assert "swin.py:142" in shown(opaque_table(source))
