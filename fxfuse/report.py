"""The account of a fusion for its user: ``report.md`` with pictures beside it, ``levels.json``, a terminal table.

The report is written for a reader who knows the parents but not the compiler. It never claims what was not measured:
without labels it speaks of agreement with the ensemble, and a comparison that was not made is named as missing.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from rich.markup import escape
from rich.table import Table

from fxfuse.dumps import write_partition
from fxfuse.errors import OutputError
from fxfuse.partition_files import markdown_table
from fxfuse.partition_record import count_words, summarise
from fxfuse.pictures import Role, draw_levels, draw_scores, role
from fxfuse.types import FuseResult, LevelReport, Opaque, Score, parameter_count

LEVELS_FORMAT, LEVELS_VERSION = "fxfuse.levels", 1
LONG = 40

PARTITION_SECTION = """## Partition

One box per level; levels that end in the same neuron space have the same colour. All of it, as data:
[levels.json](levels.json).

![the levels and what they read](partition.svg)
"""


def write_report(result: FuseResult, folder: str | Path) -> Path:
    """Write ``report.md``, its pictures and ``levels.json`` into an existing folder; returns the report's path.

    Raises ``OutputError`` if the folder cannot be written to.
    """
    folder = Path(folder)
    try:
        write_partition(result.analysis, folder / "partition.svg")
        scored = draw_scores(result.scores, folder / "accuracy.svg")
        fitted = draw_levels(result.levels, folder / "levels.svg")
        text = json.dumps(levels_json(result), indent=1, ensure_ascii=False)
        (folder / "levels.json").write_text(text + "\n", encoding="utf-8")
        report = folder / "report.md"
        report.write_text(report_text(result, scored, fitted), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write the report to {folder}: {error.strerror or error}") from error
    return report


def levels_json(result: FuseResult) -> dict[str, Any]:
    """The levels as plain values: what ``LevelReport`` says of each, joined with the partition's own account.

    ``{"format": "fxfuse.levels", "version": 1, "levels": [...]}``; the keys of a level are the fields of
    ``fxfuse.types.LevelReport`` and, where the partition has a level of that name, of
    ``fxfuse.partition_record.LevelRow`` (as ``partition``).
    """
    rows = {row.name: dataclasses.asdict(row) for row in summarise(result.analysis).levels}
    levels = [{**dataclasses.asdict(report), "partition": rows.get(report.level)} for report in result.levels]
    reported = {report.level for report in result.levels}
    levels += [{"level": name, "partition": row} for name, row in rows.items() if name not in reported]
    return {"format": LEVELS_FORMAT, "version": LEVELS_VERSION, "levels": levels}


# ------------------------------------------------------------------------------------------- the comparison

SCORE_COLUMNS = ("network", "accuracy, %", "loss", "agrees with ensemble, %", "error", "parameters")


def score_rows(scores: tuple[Score, ...]) -> list[tuple[str, ...]]:
    """The comparison as rows of text under ``SCORE_COLUMNS``; ``-`` where nothing was measured."""
    return [
        (
            score.name,
            _percent(score.accuracy),
            "-" if score.loss is None else f"{score.loss:.4f}",
            _percent(score.agreement),
            _error(score.error),
            "-" if score.parameters is None else f"{score.parameters:,}",
        )
        for score in scores
    ]


def measured_columns(rows: list[tuple[str, ...]]) -> list[int]:
    """The columns of ``score_rows`` that say something."""
    return [i for i in range(len(SCORE_COLUMNS)) if i == 0 or any(row[i] != "-" for row in rows)]


def result_table(result: FuseResult) -> Table:
    """Parents, ensemble, plain average and fused network as a table for a terminal."""
    table = Table(title=escape(_comparison_title(result)), title_justify="left", header_style="bold", min_width=50)
    rows = score_rows(result.scores)
    shown = measured_columns(rows)
    for i in shown:
        table.add_column(SCORE_COLUMNS[i], justify="right" if i else "left")
    for score, row in zip(result.scores, rows, strict=True):
        style = "bold" if role(score.name) == "fused" else ""
        table.add_row(*(escape(row[i]) for i in shown), style=style)
    return table


def _comparison_title(result: FuseResult) -> str:
    if not result.scores:
        return "nothing was measured: no evaluation data"
    where = f"on {_judged_on(result.settings)}"
    if any(score.accuracy is not None for score in result.scores):
        return where
    if any(score.loss is not None for score in result.scores):
        return f"{where}: the loss is the mean squared error to the targets"
    if any(score.agreement is not None for score in result.scores):
        return f"{where} without labels: how often each network answers as the ensemble does"
    return f"{where}: how far each network's outputs are from the parents' mean output"


def _judged_on(settings: Mapping[str, Any]) -> str:
    """The data of the comparison: without evaluation data it is made on what the fusion has seen."""
    own = "evaluation" in settings and settings["evaluation"] is None
    return "the calibration data, which fusion has seen" if own else "held-out data"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


# ------------------------------------------------------------------------------------------- the page


def report_text(result: FuseResult, scored: bool, fitted: bool) -> str:
    """The report as Markdown; ``scored`` and ``fitted`` say which of the two charts were drawn."""
    sections = [
        _summary(result),
        _networks(result, scored),
        _levels(result, fitted),
        PARTITION_SECTION,
        _opaque(result),
        _list("Notes", _notes(result)),
        _timings(result.timings),
        _settings(result.settings),
    ]
    return "\n".join(section for section in sections if section)


def _summary(result: FuseResult) -> str:
    count = len(result.parents)
    names = ", ".join(parent.program.name for parent in result.parents)
    size = count_words(parameter_count(result.module))
    source = f"{count} networks" if count != 1 else "1 network"
    text = f"# {result.analysis.program.name}, fused from {source}\n\n"
    text += f"Parents: {names}. The fused network has {size} parameters.\n\n"
    if result.classes:
        text += f"Its {len(result.classes)} classes, in the order of its outputs: {', '.join(result.classes)}.\n\n"
    if count == 1:
        text += "With one parent there is nothing to merge: the fused network should do what the parent does.\n\n"
    return text + _verdict(result.scores, f"On {_judged_on(result.settings)}")


def _verdict(scores: tuple[Score, ...], where: str) -> str:
    """What the comparison says, in a sentence or two."""
    if not scores:
        return "No evaluation data was given, so nothing is known about how well the fused network does.\n"
    labelled = any(score.accuracy is not None for score in scores)
    if not labelled and any(score.loss is not None for score in scores):
        return _figures(scores, f"{where}: mean squared error to the targets", "loss")
    best = {kind: _best(scores, kind, labelled) for kind in ("fused", "parent", "ensemble", "average")}
    if best["fused"] is None:
        what = f"{where}: squared distance to the parents' mean output, relative to its energy"
        return _figures(scores, what, "error", " 0 is that output.")
    figure, word = best["fused"][1], "accuracy" if labelled else "agreement with the ensemble"
    comma = "," if "," in where else ""
    text = f"{where}{comma} the fused network reaches **{100 * figure:.2f} %** {word}"
    others = {"parent": "the best parent", "ensemble": "the ensemble", "average": "plain weight averaging"}
    if not labelled:
        del others["ensemble"]  # it agrees with itself
    known = [f"{words} {100 * best[kind][1]:.2f} %" for kind, words in others.items() if best[kind]]  # type: ignore[index]  # None is left out
    missing = [words for kind, words in others.items() if not best[kind]]
    text += f"; {', '.join(known)}.\n" if known else ".\n"
    text += _advice({kind: found[1] for kind, found in best.items() if found}) if labelled else ""
    if missing:
        text += f"Not measured: {', '.join(missing)}.\n"
    if not labelled:
        text += (
            "No labels were given: this says how often two networks give the same answer, not how often the answer "
            "is right.\n"
        )
    return text


def _advice(accuracy: Mapping[str, float]) -> str:
    """What to do where the fused network is below its best parent."""
    fused, parent, ensemble = (accuracy.get(kind) for kind in ("fused", "parent", "ensemble"))
    if fused is None or parent is None or ensemble is None or fused >= parent:
        return ""
    if ensemble <= parent:
        return (
            "The ensemble is not above the best parent here, so fusion with these shares has nothing to gain: give the "
            "better parent a larger share, or keep it as it is.\n"
        )
    return (
        "It is below the best parent although the ensemble is not: try a wider target, more calibration inputs or "
        "fine-tuning.\n"
    )


def _figures(scores: tuple[Score, ...], what: str, column: Literal["loss", "error"], end: str = "") -> str:
    """The same where there are no classes: how far outputs are from targets, or from the parents' mean output."""
    figures = [(role(s.name), getattr(s, column)) for s in scores]
    found = {kind: [value for own, value in figures if own == kind and value is not None] for kind in get_args(Role)}
    if not found["fused"]:
        return "The fused network was not measured.\n"
    words = {"fused": "the fused network", "parent": "the nearest parent", "average": "plain weight averaging"}
    if column == "loss":
        words |= {"parent": "the best parent", "ensemble": "the ensemble"}
    said = ", ".join(f"{name} {min(found[kind]):.3g}" for kind, name in words.items() if found[kind])
    return f"{what}: {said}.{end}\n"


def _best(scores: tuple[Score, ...], kind: str, labelled: bool) -> tuple[str, float] | None:
    values = [(s.name, s.accuracy if labelled else s.agreement) for s in scores if role(s.name) == kind]
    known = [(name, value) for name, value in values if value is not None]
    return max(known, key=lambda row: row[1], default=None)


def _networks(result: FuseResult, scored: bool) -> str:
    if not result.scores:
        return ""
    rows = score_rows(result.scores)
    shown = measured_columns(rows)
    head = tuple(SCORE_COLUMNS[i] for i in shown)
    table = markdown_table(head, [tuple(row[i] for i in shown) for row in rows], right=head[1:])
    picture = "\n![comparison of the networks](accuracy.svg)\n" if scored else ""
    legend = (
        "\nThe ensemble runs all parents and averages their predictions: the mark to reach, at the cost of all parents "
        "together. Plain average is the mean of the parents' weights, position by position: what merging gives when "
        "neurons are not matched.\n"
    )
    kinds: set[Role] = {role(score.name) for score in result.scores}
    return f"## Networks\n\n{table}{picture}{legend if {'ensemble', 'average'} & kinds else ''}"


LEVEL_REPORT_COLUMNS = ("level", "space", "width", "parents' widths", "grouping", "before", "after", "fit", "note")


def level_report_rows(levels: tuple[LevelReport, ...]) -> list[tuple[str, ...]]:
    """What happened to each level, as rows of text under ``LEVEL_REPORT_COLUMNS``."""
    return [
        (
            report.level,
            report.space or "-",
            "-" if report.width is None else str(report.width),
            ", ".join(map(str, report.parent_widths)) or "-",
            _error(report.grouping_error),
            _error(report.before),
            _error(report.after),
            report.fit,
            report.note,
        )
        for report in levels
    ]


def _levels(result: FuseResult, fitted: bool) -> str:
    if not result.levels:
        return ""
    rows = level_report_rows(result.levels)
    numbers = ("width", "grouping", "before", "after")
    table = markdown_table(LEVEL_REPORT_COLUMNS, rows, right=numbers)
    if len(rows) > LONG:
        table = f"<details><summary>{len(rows)} levels</summary>\n\n{table}\n</details>\n"
    words = (
        "A level is a piece of the network that ends in one value. *Grouping* is the share of the parents' neurons' "
        "energy that is lost by putting several neurons into one group, before any weight is computed. *Before* and "
        "*after* are the errors of the level's output to the groups' targets, on samples that the fit did not see, "
        "before and after the level's own fit: squared, relative to the targets' variation; 0 is perfect, 1 is as bad "
        "as always giving the mean. At an output with classes they are the divergence from the wanted answer.\n\n"
    )
    picture = "\n![error of every level](levels.svg)\n" if fitted else ""
    return f"## Levels\n\n{words}{_worst(result.levels)}{table}{picture}"


def _worst(levels: tuple[LevelReport, ...]) -> str:
    both = [(r.level, r.before, r.after) for r in levels if r.before is not None and r.after is not None]
    if not both:
        return ""
    better = sum(after < before for _, before, after in both)
    name, _, error = max(both, key=lambda row: row[2])
    return (
        f"Fitting lowered the error of {better} of {len(both)} measured levels. The largest error that remains is "
        f"{error:.3g}, at `{name}`.\n\n"
    )


def _opaque(result: FuseResult) -> str:
    found: dict[Opaque, None] = {}
    for analysis in (result.analysis, *result.parents):
        found.update(dict.fromkeys(analysis.axes.opaque))
    if not found:
        return ""
    rows = [(o.operator, o.node, o.where or "-", o.reason or "-") for o in found]
    words = (
        "The compiler has no rule for how neurons pass through these operators. Neurons that touch them were kept in "
        "place, not matched across parents: that is safe, but merges less.\n\n"
    )
    return f"## Operators without a rule\n\n{words}{markdown_table(('operator', 'node', 'where', 'why'), rows)}"


def _notes(result: FuseResult) -> tuple[str, ...]:
    own = (*result.notes, *result.analysis.program.notes, *result.analysis.partition.notes)
    parents = [
        f"{parent.program.name}: {note}"
        for parent in result.parents
        for note in (*parent.program.notes, *parent.partition.notes)
        if note not in own
    ]
    return tuple(dict.fromkeys((*own, *parents)))


def _list(title: str, items: tuple[str, ...]) -> str:
    return f"## {title}\n\n" + "".join(f"- {item}\n" for item in items) if items else ""


def _timings(timings: Mapping[str, float]) -> str:
    if not timings:
        return ""
    rows = [(name, f"{seconds:.2f}") for name, seconds in timings.items()]
    return f"## Time\n\n{markdown_table(('stage', 'seconds'), rows, right=('seconds',))}"


def _settings(settings: Mapping[str, Any]) -> str:
    if not settings:
        return ""
    rows = [(str(key), json.dumps(value, default=str, ensure_ascii=False)) for key, value in settings.items()]
    return f"## Settings\n\n{markdown_table(('setting', 'value'), rows)}"
