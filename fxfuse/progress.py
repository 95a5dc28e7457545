"""Progress of long work, told apart from how it is shown.

Work says ``with progress.start(total, "fit layer1.0") as step: step.advance()``; steps may nest. What becomes of it
is the choice of whoever made the ``Progress``: live bars on a terminal, one line per finished step elsewhere, one
JSON object per line for programs, or nothing.
"""

import json
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any, Literal, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

Mode = Literal["auto", "quiet", "json"]


class Step(Protocol):
    """One piece of work that is under way; leaving its ``with`` block finishes it."""

    def advance(self, amount: int = 1) -> None:
        """Say that ``amount`` more units are done."""
        ...

    def note(self, text: str) -> None:
        """Say something that the user should read."""
        ...

    def finish(self) -> None:
        """End the step; more than once does no harm."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Progress(Protocol):
    """Where long work reports. ``total`` is the number of units of a step, ``None`` where it is not known."""

    def start(self, total: int | None, description: str) -> Step:
        """Begin a step; steps may nest."""
        ...

    def note(self, text: str) -> None:
        """Say something that the user should read."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _Step:
    """A step that counts and times itself, and tells its progress at each event."""

    def __init__(self, owner: "_Base", number: int, total: int | None, description: str) -> None:
        self.owner = owner
        self.number = number
        self.total = total
        self.description = description
        self.done = 0
        self.completed = True
        self.finished = False
        self.started = owner.clock()

    @property
    def seconds(self) -> float:
        return self.owner.clock() - self.started

    def advance(self, amount: int = 1) -> None:
        self.done += amount
        self.owner._advanced(self)

    def note(self, text: str) -> None:
        self.owner.note(text)

    def finish(self) -> None:
        if not self.finished:
            self.finished = True
            self.owner._finished(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.completed = kind is None
        self.finish()


class _Base:
    """Numbering of steps, and events that do nothing until a subclass shows them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.count = 0

    def start(self, total: int | None, description: str) -> Step:
        """Begin a step of ``total`` units."""
        self.count += 1
        step = _Step(self, self.count, total, description)
        self._begun(step)
        return step

    def note(self, text: str) -> None:
        """Say something that the user should read."""

    def _begun(self, step: _Step) -> None:
        """A step has begun."""

    def _advanced(self, step: _Step) -> None:
        """A step has advanced."""

    def _finished(self, step: _Step) -> None:
        """A step has ended, completed or not."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class QuietProgress(_Base):
    """Says nothing."""


class LineProgress(_Base):
    """One plain line per finished step and per note: for files, pipes and logs."""

    def __init__(self, stream: IO[str], clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self.stream = stream

    def note(self, text: str) -> None:
        """Write the text on a line of its own."""
        self._write(text)

    def _finished(self, step: _Step) -> None:
        amount = "" if step.total is None and step.done == 0 else f"{step.done}"
        amount += "" if step.total is None else f" of {step.total}"
        verb = "" if step.completed else "stopped after " if amount else "stopped"
        parts = [part for part in (f"{verb}{amount}", f"{step.seconds:.1f} s") if part]
        self._write(f"{step.description}: {', '.join(parts)}")

    def _write(self, line: str) -> None:
        self.stream.write(f"{line}\n")
        self.stream.flush()


class JsonProgress(_Base):
    """One JSON object per line: ``start``, ``advance`` (at most one per ``interval`` seconds), ``note``, ``finish``.

    Steps carry a number, so that nested ones can be told apart; ``finish`` says whether the step was completed.
    """

    def __init__(self, stream: IO[str], interval: float = 0.5, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self.stream = stream
        self.interval = interval
        self.last: dict[int, float] = {}

    def note(self, text: str) -> None:
        """Write the text as an object."""
        self._write(event="note", text=text)

    def _begun(self, step: _Step) -> None:
        self.last[step.number] = step.started
        self._write(event="start", step=step.number, description=step.description, total=step.total)

    def _advanced(self, step: _Step) -> None:
        now = self.clock()
        if now - self.last.get(step.number, now) >= self.interval:
            self.last[step.number] = now
            self._write(event="advance", step=step.number, done=step.done, total=step.total)

    def _finished(self, step: _Step) -> None:
        self.last.pop(step.number, None)
        seconds = round(step.seconds, 3)
        self._write(event="finish", step=step.number, done=step.done, seconds=seconds, completed=step.completed)

    def _write(self, **entries: Any) -> None:
        self.stream.write(json.dumps(entries) + "\n")
        self.stream.flush()


class RichProgress(_Base):
    """Live bars on a terminal. A finished step leaves the display; what is worth keeping is a note."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self.bars = Bars(*columns, console=console, transient=True)
        self.tasks: dict[int, TaskID] = {}

    def note(self, text: str) -> None:
        """Write the text above the bars."""
        self.bars.console.print(text, markup=False, highlight=False)

    def _begun(self, step: _Step) -> None:
        self.bars.start()
        self.tasks[step.number] = self.bars.add_task(step.description, total=step.total)

    def _advanced(self, step: _Step) -> None:
        self.bars.update(self.tasks[step.number], completed=step.done)

    def _finished(self, step: _Step) -> None:
        self.bars.remove_task(self.tasks.pop(step.number))
        if not self.tasks:
            self.bars.stop()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()


def make_progress(mode: Mode = "auto", stream: IO[str] | None = None) -> Progress:
    """The progress that fits ``mode`` and ``stream`` (standard error by default).

    ``auto`` gives live bars if the stream is a terminal that can move its cursor and plain lines if it is not.
    """
    out = sys.stderr if stream is None else stream
    if mode == "quiet":
        return QuietProgress()
    if mode == "json":
        return JsonProgress(out)
    console = Console(file=out)
    return RichProgress(console) if console.is_terminal and not console.is_dumb_terminal else LineProgress(out)
