"""Run many rows: each in a process of its own, limited in time and memory; what is done already is kept."""

import hashlib
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import fxfuse
from fxfuse.coverage.checks import COLUMNS
from fxfuse.coverage.entry import Entry
from fxfuse.coverage.record import Outcome, Record, read
from fxfuse.coverage.worker import UNDER_WAY, work
from fxfuse.errors import OutputError
from fxfuse.lifeline import GRACE


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

    ``again`` says which finished rows to run anew: ``none``, those that have ``failed``, those of ``other`` code, or
    ``all``. Rows under way when this is interrupted, or its process ended, stop too, and are run anew the next time.
    Raises ``OutputError`` where ``folder`` cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {folder} cannot be made: {error.strerror or error}; choose another.") from None
    code = fingerprint()
    found = {name: read(folder, name) for name in rows}
    left = [name for name, record in found.items() if record is None or _again(record, again, code, limits)]
    say(f"{len(rows) - len(left)} of {len(rows)} rows are there already")
    with closing(_ends(left, folder, limits, code)) as ends:
        for name, end in ends:
            record = found[name] = _finished(name, folder, code, end, limits)
            state = record.reason if record.failed else "green" if record.green else "green as far as it went"
            say(f"{name}: {state} ({record.seconds:.0f} s)")
    return {name: record for name, record in found.items() if record is not None}


def _again(record: Record, again: str, code: str, limits: Limits) -> bool:
    complete = record.whole or (record.done and len(limits.columns) < len(COLUMNS))
    if not complete or again == "all":
        return True
    return (again == "failed" and record.failed) or (again == "other" and record.code != code)


@dataclass(frozen=True, slots=True)
class End:
    """How a row's process ended: its exit status, whether it had to be stopped, and the seconds that it took."""

    status: int | None
    late: bool
    seconds: float


def _ends(names: Sequence[str], folder: Path, limits: Limits, code: str) -> Generator[tuple[str, End], None, None]:
    """Run the rows, ``limits.jobs`` side by side, and give each as it ends. Closing it stops those under way."""
    new_process = _starter()
    waiting = deque(names)
    running: dict[str, tuple[BaseProcess, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < max(1, limits.jobs):
                name = waiting.popleft()
                arguments = (name, folder, limits.gigabytes, code, limits.columns)
                process = new_process(target=work, args=arguments, name=name, daemon=True)
                process.start()
                running[name] = process, time.monotonic()
            left = min(start for _, start in running.values()) + limits.seconds - time.monotonic()
            connection.wait([process.sentinel for process, _ in running.values()], max(0.0, left))
            for name, (process, start) in list(running.items()):
                seconds = time.monotonic() - start
                late = process.is_alive() and seconds >= limits.seconds
                if late:
                    _stop(process)
                if not process.is_alive():
                    del running[name]
                    yield name, End(process.exitcode, late, round(seconds, 1))
    finally:
        _stop(*(process for process, _ in running.values()))


def _starter() -> Callable[..., BaseProcess]:
    """The class of processes: of a server that has imported everything once and forks, where the system has one."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn").Process
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fxfuse.coverage.checks", "timm", "transformers", "onnxruntime"])
    return context.Process


def _stop(*processes: BaseProcess) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(GRACE)
        if process.is_alive():
            process.kill()
            process.join()


def _finished(name: str, folder: Path, code: str, end: End, limits: Limits) -> Record:
    """The record as its process left it; where that was stopped, with the reason at the column that was under way."""
    record = read(folder, name)
    if record is None or record.code != code:
        record = Record(name, "", "", code=code)
    if record.done and end.status == 0:
        return record
    reason = f"stopped after {limits.seconds:.0f} s" if end.late else f"its process ended with status {end.status}"
    under_way = [column for column, cell in record.cells.items() if cell.reason == UNDER_WAY.reason]
    for column in under_way or ["traced"]:
        record.cells[column] = Outcome("failed", reason=reason)
    record.done, record.seconds = True, end.seconds
    record.write(folder)
    return record
