"""What is known about one row: an outcome per column, kept as JSON so that an interrupted run goes on."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fxfuse.output import write_atomically

State = Literal["ok", "failed", "not run"]
LEFT = "left to another run"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One cell: its state, what the page shows, why it is not green, the seconds it took."""

    state: State
    shown: str = ""
    reason: str = ""
    seconds: float = 0.0


@dataclass(slots=True)
class Record:
    """One row. ``done`` says that nothing is left to run; ``code`` is the fingerprint of the code that ran."""

    name: str
    family: str
    inputs: str
    note: str = ""
    cells: dict[str, Outcome] = field(default_factory=dict)
    done: bool = False
    parameters: int = 0
    seconds: float = 0.0
    code: str = ""

    @property
    def whole(self) -> bool:
        """Whether no column was left to another run."""
        return self.done and all(cell.reason != LEFT for cell in self.cells.values())

    @property
    def failed(self) -> bool:
        """Whether some column does not hold."""
        return any(cell.state == "failed" for cell in self.cells.values())

    @property
    def green(self) -> bool:
        """Whether every column holds."""
        return self.done and bool(self.cells) and all(cell.state == "ok" for cell in self.cells.values())

    @property
    def reason(self) -> str:
        """The first reason why the row is not green."""
        for name, cell in self.cells.items():
            if cell.state == "failed":
                return f"{name}: {cell.reason}"
        return "" if self.done else "not finished"

    def write(self, folder: Path) -> None:
        """Put it under its name into ``folder``."""
        content = json.dumps(asdict(self), indent=1).encode()
        write_atomically(place(folder, self.name), content)


def place(folder: Path, name: str) -> Path:
    """The file of a row."""
    safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
    return folder / f"{safe}.json"


def read(folder: Path, name: str) -> Record | None:
    """The record of a row, if there is a whole one."""
    try:
        raw: dict[str, Any] = json.loads(place(folder, name).read_text(encoding="utf-8"))
        cells = {column: Outcome(**cell) for column, cell in raw.pop("cells").items()}
        return Record(**raw, cells=cells)
    except (OSError, ValueError, TypeError, KeyError):
        return None
