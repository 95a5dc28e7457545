"""One row in one process: columns in order, the record written after each, so that a killed process leaves what it had.

The process is limited in time by the one that started it, and in memory by itself (where the system can do that). An
interruption from the keyboard reaches both: the one that started it then ends this one, whose row counts as not run.
"""

import contextlib
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from fxfuse.coverage.catalogue import catalogue
from fxfuse.coverage.checks import COLUMNS, CheckError, Column, Subject
from fxfuse.coverage.entry import Entry
from fxfuse.coverage.large import collect
from fxfuse.coverage.record import LEFT, Outcome, Record, place
from fxfuse.errors import FuseError
from fxfuse.export.tools import first_line
from fxfuse.lifeline import end_with_driver
from fxfuse.types import parameter_count

GIB = 2**30
UNDER_WAY = Outcome("failed", reason="did not come to its end")


def work(name: str, folder: Path, gigabytes: float, code: str, columns: Sequence[str] = tuple(COLUMNS)) -> None:
    """Run the row ``name`` and write its record into ``folder``; what it prints goes into a log beside it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_driver()
    _limit(gigabytes)
    torch.set_num_threads(1)
    with place(folder, name).with_suffix(".log").open("w", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            run_row(catalogue()[name], folder, name=name, code=code, columns=columns)
    sys.stdout.flush()


def _limit(gigabytes: float) -> None:
    """Refuse the process more memory than that; files that are mapped for reading alone do not count."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        most = int(gigabytes * GIB)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def run_row(
    entry: Entry, folder: Path, *, name: str | None = None, code: str = "", columns: Sequence[str] = tuple(COLUMNS)
) -> Record:
    """Run the ``columns`` of one row in this process; the record is written after each."""
    record = Record(name or entry.name, entry.family, entry.shape, entry.note, code=code)
    start = time.monotonic()
    row: Subject | None = None
    with tempfile.TemporaryDirectory(prefix="fxfuse-coverage-") as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            row = Subject(entry, Path(scratch))
            record.parameters = parameter_count(row.network())
        except Exception as error:  # whatever a constructor raises
            traceback.print_exc()
            row = None
            record.cells["traced"] = Outcome("failed", reason=f"cannot be built: {first_line(error)}")
        for title, column in COLUMNS.items():
            if title not in columns:
                record.cells.setdefault(title, Outcome("not run", reason=LEFT))
                continue
            if row is None or not _ready(column, row, record):
                record.cells.setdefault(title, Outcome("not run", reason="an earlier column failed"))
                continue
            record.cells[title] = UNDER_WAY
            record.write(folder)
            record.cells[title] = _cell(column, row)
            collect(record.parameters)
            record.seconds = round(time.monotonic() - start, 1)
    record.done = True
    record.write(folder)
    return record


def _ready(column: Column, row: Subject, record: Record) -> bool:
    held = {name for name, cell in record.cells.items() if cell.state == "ok"}
    return set(column.needs) <= held | ({"graph"} if row.analysis is not None else set())


def _cell(column: Column, row: Subject) -> Outcome:
    start = time.monotonic()
    try:
        state, shown, reason = "ok", column.run(row), ""
    except Exception as error:  # any failure is a cell of the table, and no reason to stop
        traceback.print_exc()
        state, shown, reason = "failed", "", _reason(error)
    return Outcome("ok" if state == "ok" else "failed", shown, reason, round(time.monotonic() - start, 1))


def _reason(error: Exception) -> str:
    """Why a column failed, in a line."""
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        return "needs more memory than --gigabytes allows"
    ours = isinstance(error, FuseError | CheckError)
    return first_line(error) if ours else f"{type(error).__name__}: {first_line(error)}"
