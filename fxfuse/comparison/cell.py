"""One run of a comparison: one method and one seed, in a process of its own, whose time and memory are the run's.

A finished run is a JSON file beside its output folder; one that was interrupted goes on from its last level.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fxfuse.finetuning import BEFORE, CONTROL
from fxfuse.output import write_atomically
from fxfuse.recipe import Recipe, dump_recipe

PROGRAM = """
import sys
from fxfuse.lifeline import end_with_stdin
end_with_stdin()  # two runs must never write one folder, which is what an orphan and the one that goes on from it would
from fxfuse.cli import main
sys.exit(main())
"""
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """What one method made of the parents with one seed.

    ``rows`` are the comparison's rows by name (those of :class:`fxfuse.types.Score`); empty where the run failed, and
    ``reason`` says why. ``cpu`` and ``wall`` are seconds and ``memory`` the peak in MiB of the whole process: loading,
    fusing, judging and writing (``None`` where the system does not tell, or the run had been interrupted and only a
    part of it is known).
    """

    method: str
    seed: int
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    reason: str = ""
    cpu: float | None = None
    wall: float | None = None
    memory: float | None = None

    @property
    def one_shot(self) -> Row:
        """The fused network as fusion left it."""
        return self.rows.get(BEFORE) or self.rows.get("fused", {})

    @property
    def tuned(self) -> Row:
        """The fused network after fine-tuning, where there was any."""
        return self.rows.get("fused", {}) if BEFORE in self.rows else {}

    @property
    def others(self) -> dict[str, Row]:
        """What it is compared with: parents, ensembles, the plain average, the fine-tuned parent."""
        return {name: row for name, row in self.rows.items() if name not in ("fused", BEFORE)}


def is_control(name: str) -> bool:
    """Whether a row is that of the fine-tuned parent."""
    return name == CONTROL


def record_of(folder: Path, method: str, seed: int) -> Path:
    """Where a finished run is noted."""
    return folder / "runs" / f"{method}-{seed}.json"


def read(folder: Path, method: str, seed: int) -> Run | None:
    """A finished run, or ``None``."""
    try:
        return Run(**json.loads(record_of(folder, method, seed).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def execute(recipe: Recipe, folder: Path) -> Run:
    """Run a recipe, or go on with it, as ``fxfuse fuse`` would; its figures, or the reason why there are none.

    Raises ``KeyboardInterrupt`` if the process was interrupted; its state stays.
    """
    method, seed = recipe.method, recipe.seed
    output = folder / "runs" / f"{method}-{seed}"
    output.parent.mkdir(parents=True, exist_ok=True)
    run = recipe.model_copy(update={"output": str(output)})
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "recipe.yaml"
        file.write_text(dump_recipe(run), encoding="utf-8")
        resumed = Path(f"{output}.partial").exists()
        again = ["--resume"] if resumed else ["--overwrite"]
        with (Path(place) / "errors").open("w+b") as errors:
            command = [sys.executable, "-c", PROGRAM, "fuse", str(file), "--quiet", *again]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=errors, stdout=errors) as process:
                status, cpu, memory = _wait(process)
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip()
    if status in (130, -2):
        raise KeyboardInterrupt
    wall: float | None = round(time.monotonic() - start, 2)
    if resumed:
        cpu = wall = memory = None
    if status == 0:
        scores = json.loads((output / "manifest.json").read_text(encoding="utf-8"))["scores"]
        found = Run(method, seed, {row["name"]: row for row in scores}, "", cpu, wall, memory)
    else:
        found = Run(method, seed, {}, _reason(said, status), cpu, wall, memory)
    write_atomically(record_of(folder, method, seed), json.dumps(asdict(found), indent=1).encode())
    return found


def _wait(process: "subprocess.Popen[bytes]") -> tuple[int, float | None, float | None]:
    """Its exit status, CPU seconds and peak MiB. An interruption reaches the process too: it is waited for, and then
    counts as the status, whatever the process made of it."""
    interrupted = False
    while True:
        try:
            if not hasattr(os, "wait4"):
                status = process.wait()
                return 130 if interrupted else status, None, None
            _, status, usage = os.wait4(process.pid, 0)
        except KeyboardInterrupt:
            interrupted = True
            continue
        process.returncode = os.waitstatus_to_exitcode(status)
        unit = 1 if sys.platform == "darwin" else 1024
        return (
            130 if interrupted else process.returncode,
            round(usage.ru_utime + usage.ru_stime, 2),
            round(usage.ru_maxrss * unit / 2**20),
        )


def _reason(said: str, status: int) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return " ".join(lines).removeprefix("error: ") if status == 2 and lines else f"ended with status {status}"
