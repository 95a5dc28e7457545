"""One writer per file format of a partition; ``fxfuse.dumps.write_partition`` chooses by suffix.

One box per level everywhere: name, parameters, operators, output shape, neuron axis and neuron space, with one colour
per space. Pictures use Graphviz where ``dot`` is on the path, and a layout of our own where it is not.
"""

import html
import io
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import networkx as nx

from fxfuse.partition_record import (
    LEVEL_COLUMNS,
    LevelRow,
    PartitionRecord,
    caption,
    count_operators,
    count_words,
    edges,
    level_rows,
    shape_words,
    space_words,
    to_json,
    to_networkx,
)
from fxfuse.pictures import Box, draw_graph, shade

OUTPUT = "output"


def boxes(record: PartitionRecord) -> tuple[list[Box], list[tuple[str, str]]]:
    """The boxes and edges of a picture: inputs, levels and one box for the output. Keys are node names."""
    colours = {space.id: i for i, space in enumerate(record.spaces)}
    drawn = [Box(i.name, f"{i.name}  {shape_words(i.shape)}", terminal=True) for i in record.inputs]
    known = {i.name for i in record.inputs} | {level.boundary for level in record.levels}
    loose = dict.fromkeys(node for node, _ in edges(record) if node not in known)
    drawn += [Box(node, node, terminal=True) for node in loose]
    drawn += [_box(record, level, colours) for level in record.levels]
    end = next(key for key in (OUTPUT, *(f"{OUTPUT}_{i}" for i in range(len(drawn) + 1))) if key not in known)
    ends = [(node, end) for node in record.outputs]
    return [*drawn, Box(end, OUTPUT, terminal=True)] if ends else drawn, [*edges(record), *ends]


def _box(record: PartitionRecord, level: LevelRow, colours: Mapping[int, int]) -> Box:
    axis = "" if level.neuron_axis is None else f" · axis {level.neuron_axis}"
    space = "no neuron axis" if level.space is None else f"space {space_words(record, level)}"
    lines = ((count_operators(level.operators, limit=4), ""), (f"{shape_words(level.shape)}{axis}", space))
    colour = None if level.space is None else colours.get(level.space)
    return Box(level.boundary, level.name, count_words(level.parameter_count), lines, colour)


# ------------------------------------------------------------------------------------------- texts


def dot_text(record: PartitionRecord) -> str:
    """The partition in Graphviz's language."""
    drawn, lines = boxes(record)
    rows = [
        "digraph partition {",
        f"  label={_quoted(caption(record))}; labelloc=t; labeljust=l; fontname=Helvetica; fontsize=13;",
        "  rankdir=TB; nodesep=0.3; ranksep=0.3;",
        "  node [shape=box, style=filled, fontname=Helvetica, fontsize=9, margin=0.12, penwidth=0.9];",
        '  edge [color="#7b8794", arrowsize=0.6];',
    ]
    for box in drawn:
        fill, edge = shade(box.colour)
        shape = ", shape=ellipse" if box.terminal else ""
        label = _quoted(box.title) if box.terminal else _dot_label(box)
        rows.append(f'  {_quoted(box.key)} [label={label}, fillcolor="{fill}", color="{edge}"{shape}];')
    rows += [f"  {_quoted(a)} -> {_quoted(b)};" for a, b in lines]
    return "\n".join([*rows, "}"]) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") + '"'


def _dot_label(box: Box) -> str:
    head = f"<B>{html.escape(box.title)}</B>    {html.escape(box.corner)}"
    left = '<BR ALIGN="LEFT"/>'
    lines = ["    ".join(html.escape(part) for part in line if part) for line in box.lines]
    return f"<{left.join([head, *lines])}{left}>"


def mermaid_text(record: PartitionRecord) -> str:
    """The partition in Mermaid's language, which GitHub and others draw inside Markdown."""
    drawn, lines = boxes(record)
    ids = {box.key: f"n{i}" for i, box in enumerate(drawn)}
    rows = ["flowchart TD"]
    for box in drawn:
        text = _mermaid_label(box)
        rows.append(f'  {ids[box.key]}(["{text}"])' if box.terminal else f'  {ids[box.key]}["{text}"]')
    rows += [f"  {ids[a]} --> {ids[b]}" for a, b in lines]
    for box in drawn:
        fill, edge = shade(box.colour)
        rows.append(f"  style {ids[box.key]} fill:{fill},stroke:{edge},color:#1f2933")
    return "\n".join(rows) + "\n"


def _mermaid_label(box: Box) -> str:
    def clean(text: str) -> str:  # Mermaid's own escapes start with a hash
        return text.replace("#", "#35;").replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;")

    head = f"<b>{clean(box.title)}</b>" if box.corner else clean(box.title)
    body = [" · ".join(clean(part) for part in line if part) for line in box.lines]
    return "<br/>".join([f"{head} · {clean(box.corner)}" if box.corner else head, *body])


def markdown_text(record: PartitionRecord) -> str:
    """A page with the Mermaid picture and the table of levels."""
    table = markdown_table(LEVEL_COLUMNS, level_rows(record), right=("parameters", "neuron axis"))
    return f"# {caption(record)}\n\n```mermaid\n{mermaid_text(record)}```\n\n{table}"


def markdown_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], right: tuple[str, ...] = ()) -> str:
    """A Markdown table; bars and line breaks inside cells are escaped."""

    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |\n"

    rule = tuple("---:" if column in right else "---" for column in columns)
    return line(columns) + line(rule) + "".join(line(row) for row in rows)


def html_text(record: PartitionRecord) -> str:
    """A page that needs nothing else: the picture, and the table of levels beside it."""
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "partition.svg"
        write_picture(record, picture)
        svg = picture.read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :]
    title = html.escape(caption(record))
    head = "".join(f"<th>{html.escape(column)}</th>" for column in LEVEL_COLUMNS)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n" for row in level_rows(record)
    )
    style = (
        "body{font:14px/1.4 Helvetica,Arial,sans-serif;margin:24px;color:#1f2933;background:#fff}"
        "main{display:flex;flex-wrap:wrap;gap:32px;align-items:flex-start}svg{max-width:100%;height:auto}"
        "table{border-collapse:collapse;font-size:12px}th,td{padding:4px 8px;border-bottom:1px solid #e4e7eb;"
        "text-align:left;vertical-align:top}"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f"<style>{style}</style></head>\n<body><h1>{title}</h1><main><div>{svg}</div>\n"
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></main></body></html>\n"
    )


# ------------------------------------------------------------------------------------------- writers


def _text(make: Callable[[PartitionRecord], str]) -> Callable[[PartitionRecord, Path], None]:
    def write(record: PartitionRecord, path: Path) -> None:
        path.write_text(make(record), encoding="utf-8")

    return write


def json_text(record: PartitionRecord) -> str:
    """The partition as JSON; see ``fxfuse.partition_record``."""
    return json.dumps(to_json(record), indent=1, ensure_ascii=False) + "\n"


def graphml_text(record: PartitionRecord) -> str:
    """The partition as GraphML, with the attributes of ``fxfuse.partition_record.to_networkx``."""
    buffer = io.BytesIO()
    nx.write_graphml_xml(to_networkx(record), buffer, prettyprint=True)
    return buffer.getvalue().decode("utf-8") + "\n"


def _run_dot(dot: str, kind: str, text: str) -> bytes:
    """What Graphviz draws; nothing if it fails or takes long, as it does on densely connected levels."""
    try:
        done = subprocess.run([dot, f"-T{kind}"], input=text.encode(), capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return done.stdout if done.returncode == 0 else b""


def write_picture(record: PartitionRecord, path: Path) -> None:
    """A picture: by Graphviz if ``dot`` is there and works, else by our own layout."""
    dot = shutil.which("dot")
    if dot is not None:
        drawing = _run_dot(dot, path.suffix[1:].lower(), dot_text(record))
        if drawing:
            path.write_bytes(drawing)
            return
    drawn, lines = boxes(record)
    draw_graph(drawn, lines, path, caption(record))


WRITERS: Mapping[str, Callable[[PartitionRecord, Path], None]] = {
    ".json": _text(json_text),
    ".graphml": _text(graphml_text),
    ".dot": _text(dot_text),
    ".gv": _text(dot_text),
    ".mmd": _text(mermaid_text),
    ".mermaid": _text(mermaid_text),
    ".md": _text(markdown_text),
    ".html": _text(html_text),
    ".svg": write_picture,
    ".png": write_picture,
}
