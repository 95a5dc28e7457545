"""The page and its JSON: one table per family, the counts on top, and a line for each row that is not green."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fxfuse.coverage.checks import COLUMNS, FIT, LAWS, SAMPLES
from fxfuse.coverage.record import Record, read
from fxfuse.output import write_atomically
from fxfuse.provenance import PACKAGES, versions

HEAD = """# Coverage

What `fxfuse coverage` found: every row is a model with random weights, every column a law or a stage of the compiler
that the model must pass. Nothing here says how good a fusion is; it says that the machinery holds.

| column | what holds where it is green |
| --- | --- |
{columns}

Weights and running statistics are random, so that no neuron is like another; of a network that then amplifies rounding
until no law could be seen the matrices are made smaller, by a factor of 0.8 at a time. `fused` takes {samples} samples
and {steps} steps per level. Beside the green mark stands what was measured: the front end, a count, or the largest
difference relative to the largest output. Inputs are small where a model permits (the shape without the batch stands
in the table); architectures and widths are the builders' own unless a note says otherwise.

Run it again with `fxfuse coverage --out DIR`; see [the command line](cli.md#coverage). Versions: {versions}.

## Counts

Where the laws alone were run (`--laws`), a row counts under `laws hold`, and under `green` not yet.

{counts}
"""


def kept(folder: Path, names: Sequence[str]) -> tuple[list[Record], list[str]]:
    """The records that lie in ``folder``, in the order of ``names``, and the names without one."""
    found = {name: read(folder, name) for name in names}
    return [r for r in found.values() if r is not None and r.done], [
        n for n, r in found.items() if r is None or not r.done
    ]


def write_page(records: Sequence[Record], page: Path, notes: Sequence[str] = ()) -> None:
    """Write ``page`` (Markdown) and the same with all seconds beside it as JSON."""
    write_atomically(page, markdown(records, notes).encode())
    write_atomically(page.with_suffix(".json"), as_json(records, notes).encode())


def as_json(records: Sequence[Record], notes: Sequence[str] = ()) -> str:
    """Everything that is known, for programs."""
    content: dict[str, Any] = {
        "versions": _versions(),
        "code": sorted({record.code for record in records}),
        "counts": {family: list(pair) for family, pair in counts(records).items()},
        "notes": list(notes),
        "rows": [asdict(record) | {"green": record.green, "reason": record.reason} for record in records],
    }
    return json.dumps(content, indent=1) + "\n"


def counts(records: Sequence[Record]) -> dict[str, tuple[int, int, int]]:
    """Rows that are green, rows whose laws hold, and all rows, per family."""
    found: dict[str, tuple[int, int, int]] = {}
    for record in records:
        green, laws, every = found.get(record.family, (0, 0, 0))
        hold = all(name in record.cells and record.cells[name].state == "ok" for name in LAWS)
        found[record.family] = (green + record.green, laws + hold, every + 1)
    return found


def markdown(records: Sequence[Record], notes: Sequence[str] = ()) -> str:
    """The page."""
    families = counts(records)
    rows = [f"| {family} | {green} | {laws} | {every} |" for family, (green, laws, every) in families.items()]
    total = [f"| all | {' | '.join(str(sum(numbers)) for numbers in zip(*families.values(), strict=True))} |"]
    text = HEAD.format(
        columns="\n".join(f"| {column.title} | {_first(column.run.__doc__)} |" for column in COLUMNS.values()),
        samples=SAMPLES,
        steps=FIT.steps,
        versions=", ".join(f"{name} {version}" for name, version in _versions().items()),
        counts="\n".join(["| family | green | laws hold | rows |", "| --- | ---: | ---: | ---: |", *rows, *total]),
    )
    parts = [text, *(f"{note}\n" for note in (*_ages(records), *notes)), _reasons(records)]
    for family in families:
        parts.append(_family(family, [record for record in records if record.family == family]))
    return "\n".join(part for part in parts if part)


def _ages(records: Sequence[Record]) -> Sequence[str]:
    """A word where rows were made while the code changed."""
    states = {record.code for record in records}
    if len(states) < 2:
        return ()
    return (
        f"The rows were made by {len(states)} states of the code, which changed meanwhile; `--again other` makes those "
        "anew that the present code did not make.",
    )


def _first(docstring: str | None) -> str:
    return " ".join((docstring or "").split("\n\n")[0].split())


def _versions() -> Mapping[str, str]:
    return versions((*PACKAGES, "timm", "transformers"))


def _reasons(records: Sequence[Record]) -> str:
    rows = [f"| {r.name} | {_cell_text(r.reason)} |" for r in records if r.failed]
    if not rows:
        return ""
    return "\n".join(["## What is not green", "", "| model | why |", "| --- | --- |", *rows, ""])


def _family(family: str, records: Sequence[Record]) -> str:
    titles = ["model", "input", *(column.title for column in COLUMNS.values()), "seconds"]
    lines = [f"## {family}", "", f"| {' | '.join(titles)} |", f"| {' | '.join('---' for _ in titles)} |"]
    for record in records:
        cells = [_shown(record, name) for name in COLUMNS]
        model = f"{record.name} ({record.note})" if record.note else record.name
        lines.append(f"| {' | '.join([model, record.inputs, *cells, f'{record.seconds:.0f}'])} |")
    return "\n".join([*lines, ""])


def _shown(record: Record, column: str) -> str:
    cell = record.cells.get(column)
    if cell is None or cell.state == "not run":
        return "-"
    return f"✓ {cell.shown}" if cell.state == "ok" else "✗"


def _cell_text(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
