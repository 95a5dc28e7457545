import io
import json

import pytest
from rich.console import Console

from fxfuse.progress import JsonProgress, LineProgress, Progress, QuietProgress, RichProgress, make_progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(progress: Progress) -> None:
    with progress, progress.start(2, "outer [1/2]") as outer:
        with progress.start(None, "inner") as inner:
            inner.advance(3)
            inner.note("half way")
        outer.advance()
        outer.advance()


def test_lines_off_a_terminal_one_per_step_without_control_codes() -> None:
    stream = io.StringIO()
    work(LineProgress(stream, Clock()))
    assert stream.getvalue() == "half way\ninner: 3, 0.0 s\nouter [1/2]: 2 of 2, 0.0 s\n"


def test_a_step_that_fails_says_where_it_stopped() -> None:
    stream = io.StringIO()

    def interrupted() -> None:
        with LineProgress(stream, Clock()).start(5, "fit") as step:
            step.advance(2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert stream.getvalue() == "fit: stopped after 2 of 5, 0.0 s\n"


def test_json_is_one_object_per_line_and_advances_are_throttled() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = JsonProgress(stream, interval=0.5, clock=clock)
    with progress.start(10, "fit") as step:
        for _ in range(10):
            clock.now += 0.125
            step.advance()
    progress.note("done")
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert events[0] == {"event": "start", "step": 1, "description": "fit", "total": 10}
    assert [e["done"] for e in events if e["event"] == "advance"] == [4, 8]
    assert events[-2] == {"event": "finish", "step": 1, "done": 10, "seconds": 1.25, "completed": True}
    assert events[-1] == {"event": "note", "text": "done"}


def test_json_says_when_a_step_was_not_completed() -> None:
    stream = io.StringIO()
    with pytest.raises(ValueError), JsonProgress(stream).start(1, "fit"):
        raise ValueError
    assert json.loads(stream.getvalue().splitlines()[-1])["completed"] is False


def test_rich_bars_show_and_leave_the_notes() -> None:
    stream = Terminal()
    progress = RichProgress(Console(file=stream, force_terminal=True, width=80))
    work(progress)
    work(progress)
    assert stream.getvalue().count("half way") == 2
    assert "outer [1/2]" in stream.getvalue()
    assert not progress.tasks


def test_finishing_twice_does_no_harm() -> None:
    stream = io.StringIO()
    step = LineProgress(stream).start(None, "a")
    step.finish()
    step.finish()
    assert len(stream.getvalue().splitlines()) == 1


def test_the_variant_follows_mode_and_stream(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    assert isinstance(make_progress("quiet"), QuietProgress)
    assert isinstance(make_progress("json"), JsonProgress)
    assert isinstance(make_progress("auto", io.StringIO()), LineProgress)
    assert isinstance(make_progress("auto", Terminal()), RichProgress)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_progress("auto", Terminal()), LineProgress)
    work(make_progress("quiet"))
    work(make_progress("json"))
    out, err = capsys.readouterr()
    assert out == ""
    assert all(json.loads(line) for line in err.splitlines())
