"""Run many rows: each in a process of its own, limited in time and memory; what is done already is kept."""

import hashlib
import multiprocessing
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import fxfuse
from fxfuse.coverage.checks import COLUMNS
from fxfuse.coverage.entry import Entry
from fxfuse.coverage.record import Outcome, Record, read
from fxfuse.coverage.worker import work
from fxfuse.errors import OutputError

LATE = "did not come to its end"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one row may use, and how many run side by side."""

    seconds: float = 900.0
    gigabytes: float = 12.0
    jobs: int = 1
    columns: tuple[str, ...] = tuple(COLUMNS)


def fingerprint() -> str:
    """SHA-256 over the package's own source files, so that a page can say which code it speaks of."""
    root = Path(fxfuse.__file__).resolve().parent
    folders = [root, root / "passes", root / "models_zoo"]
    files = sorted({file.resolve() for folder in folders for file in folder.resolve().rglob("*.py")})
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.parent.name}/{file.name}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def run_rows(
    rows: Mapping[str, Entry], folder: Path, limits: Limits, *, again: str = "none", say: Callable[[str], None] = print
) -> dict[str, Record]:
    """Run every row that is not done yet, and give all records.

    ``again`` says which finished rows to run anew: ``none``, those that are not ``green``, those of ``other`` code, or
    ``all``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {folder} cannot be made: {error.strerror or error}; choose another.") from None
    code = fingerprint()
    found = {name: read(folder, name) for name in rows}
    left = [name for name, record in found.items() if record is None or _again(record, again, code, limits)]
    say(f"{len(rows) - len(left)} of {len(rows)} rows are there already")
    context = multiprocessing.get_context(_method())
    if isinstance(context, multiprocessing.context.ForkServerContext):
        context.set_forkserver_preload(["fxfuse.coverage.checks", "timm", "transformers", "onnxruntime"])
    with ThreadPoolExecutor(max_workers=max(1, limits.jobs)) as pool:
        for name, record in pool.map(lambda name: (name, _row(name, folder, limits, code, context)), left):
            found[name] = record
            state = record.reason if record.failed else "green" if record.green else "green as far as it went"
            say(f"{name}: {state} ({record.seconds:.0f} s)")
    return {name: record for name, record in found.items() if record is not None}


def _again(record: Record, again: str, code: str, limits: Limits) -> bool:
    complete = record.whole or (record.done and len(limits.columns) < len(COLUMNS))
    if not complete or again == "all":
        return True
    return (again == "failed" and record.failed) or (again == "other" and record.code != code)


def _method() -> str:
    """A server that has imported everything once and forks, where the system has one."""
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def _row(name: str, folder: Path, limits: Limits, code: str, context: multiprocessing.context.BaseContext) -> Record:
    process = context.Process(  # type: ignore[attr-defined]  # every context has one
        target=work, args=(name, folder, limits.gigabytes, code, limits.columns), name=name, daemon=True
    )
    start = time.monotonic()
    process.start()
    process.join(limits.seconds)
    late = process.is_alive()
    if late:
        process.terminate()
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()
    return _finished(name, folder, code, process.exitcode, late, round(time.monotonic() - start, 1), limits)


def _finished(
    name: str, folder: Path, code: str, status: int | None, late: bool, seconds: float, limits: Limits
) -> Record:
    """The record as its process left it; where that was stopped, with the reason at the column that was under way."""
    record = read(folder, name)
    if record is None or record.code != code:
        record = Record(name, "", "", code=code)
    if record.done and status == 0:
        return record
    reason = f"stopped after {limits.seconds:.0f} s" if late else f"its process ended with status {status}"
    under_way = [column for column, cell in record.cells.items() if cell.reason.startswith(LATE)]
    for column in under_way or ["traced"]:
        record.cells[column] = Outcome("failed", reason=reason)
    record.done, record.seconds = True, seconds
    record.write(folder)
    return record
