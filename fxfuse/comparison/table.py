"""The figures of many runs as one table: Markdown for readers, CSV for programs, a picture."""

import csv
import io
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fxfuse.comparison.cell import Row, Run, is_control
from fxfuse.output import write_atomically
from fxfuse.partition_files import markdown_table
from fxfuse.pictures import Bar, draw_bars

CSV_COLUMNS = (
    "method", "seed", "network", "accuracy", "loss", "agreement", "error", "parameters", "cpu_s", "wall_s", "peak_mib",
    "reason",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measure:
    """Which figure the table shows, and in which unit."""

    key: str
    title: str
    factor: float

    def of(self, row: Row) -> float | None:
        """The figure of a row."""
        value = row.get(self.key)
        return None if value is None else self.factor * float(value)


MEASURES = (
    Measure("accuracy", "accuracy, %", 100),
    Measure("agreement", "agrees with the ensemble, %", 100),
    Measure("error", "squared distance to the parents' mean output", 1),
)


def measure_of(runs: Sequence[Run]) -> Measure:
    """The first figure that the fused networks have."""
    rows = [run.one_shot for run in runs if run.rows]
    return next((m for m in MEASURES if any(m.of(row) is not None for row in rows)), MEASURES[0])


def summary(runs: Sequence[Run]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Column titles and rows: what was compared with, then a row per method; means and sample deviations over seeds."""
    measure = measure_of(runs)
    tuned = any(run.tuned for run in runs)
    head = ("network", f"one-shot {measure.title}", *(("fine-tuned",) if tuned else ()), "CPU s", "wall s", "peak MiB")
    rows = [
        (name, *(("-", figure) if is_control(name) else (figure, *(("-",) if tuned else ()))), "-", "-", "-")
        for name, figure in ((name, spread(values)) for name, values in _others(runs, measure).items())
    ]
    for method, own in _by_method(runs).items():
        done = [run for run in own if run.rows]
        if not done:
            rows.append((f"`{method}`", f"failed: {own[0].reason}", *["-"] * (len(head) - 2)))
            continue
        lost = f" ({len(own) - len(done)} of {len(own)} seeds failed)" if len(done) < len(own) else ""
        figures = [spread(_known(measure.of(run.one_shot) for run in done)) + lost]
        if tuned:
            figures.append(spread(_known(measure.of(run.tuned) for run in done)))
        costs = [_mean(_known(get(run) for run in done)) for get in _COSTS]
        rows.append((f"`{method}`", *figures, *costs))
    return head, rows


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation; the latter where there are several different values."""
    if not values:
        return "-"
    mean = statistics.mean(values)
    digits = 2 if abs(mean) >= 1 else 4
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{mean:.{digits}f}" + (f" ±{deviation:.{digits}f}" if deviation > 0 else "")


def write(runs: Sequence[Run], folder: Path, title: str) -> list[Path]:
    """``compare.md``, ``compare.csv`` and ``compare.png`` (left out where no run has a figure)."""
    head, rows = summary(runs)
    seeds = sorted({run.seed for run in runs})
    text = (
        f"# {title}\n\nSeeds {', '.join(map(str, seeds))}; mean and sample standard deviation. CPU, wall time and peak "
        "memory are those of the whole process: loading, fusing, judging and writing; runs that were interrupted and "
        "resumed do not count there.\n\n"
        f"{markdown_table(head, rows)}\n"
    )
    written = [folder / "compare.md", folder / "compare.csv"]
    picture = folder / "compare.png"
    if draw_bars(_bars(runs), measure_of(runs).title, picture):
        text += "\n![comparison](compare.png)\n"
        written.append(picture)
    write_atomically(written[0], text.encode())
    write_atomically(written[1], _csv(runs).encode())
    return written


def _csv(runs: Sequence[Run]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(CSV_COLUMNS)
    keys = ("accuracy", "loss", "agreement", "error", "parameters")
    for run in runs:
        for name, row in run.rows.items() or {"fused": {}}.items():
            costs = (run.cpu, run.wall, run.memory) if name == "fused" else ("", "", "")
            table.writerow((run.method, run.seed, name, *(row.get(key) for key in keys), *costs, run.reason))
    return text.getvalue()


def _bars(runs: Sequence[Run]) -> list[Bar]:
    measure = measure_of(runs)
    bars = [Bar(name, statistics.mean(values), _deviation(values)) for name, values in _others(runs, measure).items()]
    for method, own in _by_method(runs).items():
        values = _known(measure.of(run.one_shot) for run in own)
        tuned = _known(measure.of(run.tuned) for run in own)
        if values:
            mark = statistics.mean(tuned) if tuned else None
            bars.append(Bar(f"fused, {method}", statistics.mean(values), _deviation(values), mark))
    return bars


def _others(runs: Sequence[Run], measure: Measure) -> dict[str, list[float]]:
    """What is compared with. It depends on the seed at most, so one method's runs tell it."""
    found: dict[str, dict[int, float]] = {}
    for run in runs:
        for name, row in run.others.items():
            value = measure.of(row)
            if value is not None:
                found.setdefault(name, {}).setdefault(run.seed, value)
    return {name: list(values.values()) for name, values in found.items()}


def _by_method(runs: Sequence[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.method, []).append(run)
    return found


_COSTS: tuple[Callable[[Run], float | None], ...] = (lambda r: r.cpu, lambda r: r.wall, lambda r: r.memory)


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.0f}" if values else "-"


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
