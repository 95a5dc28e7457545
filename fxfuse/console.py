"""What a user reads in the terminal after a run: tables and sentences on standard output, and the same as JSON."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fxfuse.export import OnnxReport
from fxfuse.presets import DEFAULT, METHODS
from fxfuse.report import (
    LEVEL_REPORT_COLUMNS,
    SCORE_COLUMNS,
    level_report_rows,
    measured_columns,
    result_table,
    score_rows,
)
from fxfuse.run import RunOutcome
from fxfuse.types import Analysis, LevelReport, Score

MANY = 60
"""Levels that are printed; the rest is in the report."""
WIDE = 160
"""Columns where there is no terminal that has a width of its own."""


def make_console() -> Console:
    """Standard output, wide enough for a table where it is a file or a pipe."""
    if sys.stdout.isatty() or "COLUMNS" in os.environ:
        return Console()
    return Console(width=WIDE)


def show_run(console: Console, outcome: RunOutcome, levels: bool = True) -> None:
    """The comparison, the levels, and what was written."""
    console.print(result_table(outcome.result))
    if levels and outcome.result.levels:
        console.print(level_report_table(outcome.result.levels))
    show_files(console, outcome)


def show_files(console: Console, outcome: RunOutcome) -> None:
    """Where the result lies, and how far its ONNX file is from it."""
    names = sorted(path.name for path in outcome.folder.iterdir() if path.suffix != ".svg")
    say(console, f"written: {outcome.folder} ({', '.join(names)})")
    if outcome.onnx is not None:
        say(console, onnx_sentence(outcome.onnx))


def level_report_table(levels: tuple[LevelReport, ...]) -> Table:
    """What happened to each level; columns that say nothing are left out."""
    rows = level_report_rows(levels[:MANY])
    keep = [i for i in range(len(LEVEL_REPORT_COLUMNS)) if i == 0 or any(row[i] not in ("", "-") for row in rows)]
    title = "levels: error of the grouping, error of the level's output before and after fitting"
    table = Table(title=escape(title), title_justify="left", header_style="bold")
    numbers = ("width", "grouping", "before", "after")
    for i in keep:
        column = LEVEL_REPORT_COLUMNS[i]
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(row[i]) for i in keep))
    if len(levels) > MANY:
        table.caption = f"{len(levels) - MANY} more levels in report.md"
    return table


def level_sentences(levels: tuple[LevelReport, ...]) -> list[str]:
    """One sentence per level: what was grouped into what, and how well it fits."""
    return [_level_sentence(report) for report in levels]


def _level_sentence(report: LevelReport) -> str:
    parts = []
    if report.width is not None and report.parent_widths:
        before = " + ".join(map(str, report.parent_widths))
        parts.append(f"{before} neurons grouped into {report.width}")
    if report.grouping_error is not None:
        parts.append(f"the groups keep {100 * (1 - report.grouping_error):.1f} % of their energy")
    if report.before is not None and report.after is not None:
        parts.append(f"fitting took the error from {report.before:.3g} to {report.after:.3g}")
    elif report.after is not None:
        parts.append(f"error {report.after:.3g}")
    if report.note:
        parts.append(report.note)
    return f"{report.level}: {'; '.join(parts) or 'nothing to group or fit'}"


def score_table(score: Score, title: str) -> Table:
    """The figures of one network."""
    table = Table(title=escape(title), title_justify="left", header_style="bold")
    row = score_rows((score,))[0]
    shown = measured_columns([row])
    for i in shown:
        table.add_column(SCORE_COLUMNS[i], justify="right" if i else "left")
    table.add_row(*(escape(row[i]) for i in shown))
    return table


def analysis_notes(analysis: Analysis) -> list[str]:
    """What there is to say of a network's graph."""
    front = {"fx": "torch.fx", "export": "torch.export"}[analysis.program.front_end]
    notes = (*analysis.program.notes, *analysis.partition.notes)
    return [f"traced by {front}; {_counted(len(analysis.axes.spaces))}", *(f"note: {note}" for note in notes)]


def _counted(spaces: int) -> str:
    return "1 neuron space" if spaces == 1 else f"{spaces} neuron spaces"


def plain_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Rows of text under their titles."""
    table = Table(*head, header_style="bold")
    for row in rows:
        table.add_row(*row)
    return table


def methods_table() -> Table:
    """The methods, each with a line on what it does."""
    rows = [
        (f"{name} (default)" if name == DEFAULT else name, "yes" if preset.needs_data else "no", preset.summary)
        for name, preset in METHODS.items()
    ]
    return plain_table(("method", "needs data", "what it does"), rows)


def methods_json() -> list[dict[str, Any]]:
    """The same as plain values."""
    return [{"method": name, "summary": m.summary, "needs_data": m.needs_data} for name, m in METHODS.items()]


def onnx_sentence(report: OnnxReport) -> str:
    """How the ONNX file was checked, and what came out."""
    sizes = ", ".join(map(str, report.batches))
    return (
        f"{report.path.name}: opset {report.opset}, {report.nodes} nodes; onnxruntime at batch {sizes} differs by at "
        f"most {report.max_abs:.2g} ({report.max_rel:.2g} of the largest output)"
    )


def run_json(outcome: RunOutcome) -> dict[str, Any]:
    """A run as plain values."""
    return {
        "folder": str(outcome.folder),
        "scores": [dataclasses.asdict(score) for score in outcome.result.scores],
        "levels": [dataclasses.asdict(level) for level in outcome.result.levels],
        "notes": list(outcome.result.notes),
        "timings": dict(outcome.result.timings),
        "onnx": None if outcome.onnx is None else onnx_json(outcome.onnx),
    }


def onnx_json(report: OnnxReport) -> dict[str, Any]:
    """The check of an ONNX file as plain values."""
    return {**dataclasses.asdict(report), "path": str(report.path)}


def say(console: Console, *lines: str | Sequence[str]) -> None:
    """Lines as they are: no markup, no colours, no folding."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
