"""A partition for readers: tables for a terminal, and files in the format that the suffix names.

Everything is written from one record, ``PartitionRecord``: ``summarise`` makes it from an analysis, ``read_partition``
from a JSON file, and reading what was written for ``analysis`` gives ``summarise(analysis)``. The keys of the JSON
file stand in ``fxfuse.partition_record``.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from fxfuse.errors import OutputError
from fxfuse.output import check_file, replacing
from fxfuse.partition_files import WRITERS
from fxfuse.partition_record import (
    FORMAT,
    LEVEL_COLUMNS,
    SPACE_COLUMNS,
    VERSION,
    InputRow,
    LevelRow,
    PartitionRecord,
    SpaceRow,
    caption,
    level_rows,
    space_rows,
    summarise,
)
from fxfuse.types import Analysis, Opaque

OPAQUE_COLUMNS = ("operator", "node", "where", "why")


def level_table(source: Analysis | PartitionRecord) -> Table:
    """The levels as a table for a terminal."""
    record = _record(source)
    return _table(caption(record), LEVEL_COLUMNS, level_rows(record), right={"parameters", "neuron axis"})


def space_table(source: Analysis | PartitionRecord) -> Table:
    """The neuron spaces as a table for a terminal."""
    record = _record(source)
    return _table(f"{len(record.spaces)} neuron spaces", SPACE_COLUMNS, space_rows(record), right={"width"})


def opaque_table(source: Analysis | PartitionRecord) -> Table:
    """The operators without an axis rule as a table for a terminal: what they touch stays unmatched."""
    record = _record(source)
    rows = [(o.operator, o.node, o.where, o.reason) for o in record.opaque]
    title = f"{len(rows)} opaque operators: the neurons they touch stay unmatched" if rows else "no opaque operators"
    return _table(title, OPAQUE_COLUMNS, rows)


def _record(source: Analysis | PartitionRecord) -> PartitionRecord:
    return summarise(source) if isinstance(source, Analysis) else source


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: set[str] | None = None) -> Table:
    table = Table(title=escape(title), title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in (right or ()) else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table


def check_partition_file(path: str | Path) -> None:
    """Raise ``OutputError`` where :func:`write_partition` could not write: an unknown suffix, or no such folder."""
    if Path(path).suffix.lower() not in WRITERS:
        known = ", ".join(sorted(WRITERS))
        raise OutputError(f"cannot write a partition to {path}: its suffix must be one of {known}")
    check_file(path)


def write_partition(source: Analysis | PartitionRecord, path: str | Path) -> None:
    """Write a partition in the format that the suffix of ``path`` names.

    Raises ``OutputError`` for an unknown suffix (the message names the known ones) and for a file that cannot be
    written.
    """
    path = Path(path)
    check_partition_file(path)
    try:
        with replacing(path) as temporary:
            WRITERS[path.suffix.lower()](_record(source), temporary)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def read_partition(path: str | Path) -> PartitionRecord:
    """Load a partition that ``write_partition`` wrote as JSON. Raises ``OutputError`` if the file is something else."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot read a partition from {path}: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise OutputError(f"{path} is not a partition: its 'format' must be '{FORMAT}'")
    if data.get("version") != VERSION:
        raise OutputError(f"{path} is a partition of version {data.get('version')}; this program reads {VERSION}")
    lists = {"inputs": InputRow, "levels": LevelRow, "spaces": SpaceRow, "opaque": Opaque}
    try:
        rows = {key: tuple(_fill(kind, row) for row in data[key]) for key, kind in lists.items()}
        return PartitionRecord(**{**_known(PartitionRecord, data), **rows})
    except (KeyError, TypeError, AttributeError) as error:
        raise OutputError(f"{path} is not a complete partition: {error}") from error


def _known(kind: type, data: dict[str, Any]) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(kind)]
    return {name: _frozen(data[name]) for name in names if name in data}


def _fill(kind: type, data: dict[str, Any]) -> Any:
    return kind(**_known(kind, data))


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
