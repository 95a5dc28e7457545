"""The output folder: written aside, put into place in one step, and resumable.

While a run is under way everything lies in ``<output>.partial``: finished parts under ``state/``, one file each, and
the result under ``result/``. A file is written under another name, flushed to the disk and renamed, so that a process
killed at any time leaves only whole files. At the end ``result/`` is renamed to the output's name and the rest is
removed. A run that stops early leaves its state if it has saved any, and nothing otherwise.

A state belongs to one *identity*: the JSON values on which the result depends (``fxfuse.recipe.identity`` and the
hashes of the input files). ``--resume`` goes on only where the identities are equal.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fxfuse.errors import OutputError
from fxfuse.records import shown

MARK = "manifest.json"
"""The file by which a folder is known to be a result, and may be overwritten."""


class Checkpoint:
    """Finished parts of a run by key, each of them whole or not there at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, key: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> None:
        """Keep tensors and JSON values under ``key``, in place of what was there; on the disk when this returns.

        Raises ``OutputError`` where it cannot be written.
        """
        own = {name: value.detach().to("cpu").contiguous().clone() for name, value in tensors.items()}
        try:
            write_atomically(self._path(key), save(own, {"key": key, "meta": json.dumps(dict(meta or {}))}))
        except OSError as error:
            raise OutputError(
                f"The state of the run cannot be written to {self.folder}: {error.strerror or error}; what was "
                "finished before is kept, --resume goes on with it."
            ) from error

    def load(self, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was saved under ``key``, on the CPU, or ``None``. Raises ``OutputError`` for a damaged file."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # no mapping
                meta: dict[str, Any] = json.loads(file.metadata()["meta"])
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise OutputError(f"The saved state {path} is damaged ({error}); remove it or start over.") from None
        return tensors, meta

    def __contains__(self, key: str) -> bool:
        return self._path(key).is_file()

    def __len__(self) -> int:
        return sum(1 for _ in self.folder.glob("*.safetensors"))

    def _path(self, key: str) -> Path:
        # The hash keeps keys apart that differ only in characters that file names cannot have, or in case.
        digest = hashlib.sha256(key.encode()).hexdigest()[:12]
        return self.folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', key)[:60]}-{digest}.safetensors"


def check_file(path: str | Path) -> None:
    """Raise ``OutputError`` where a file of that name cannot be written: told before the work, not after."""
    path = Path(path)
    if not path.name or path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; name a file")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"cannot write {path}: the folder {path.parent} may not be written")


def kept(path: str | Path | None) -> bool:
    """Whether an interrupted run that was to write ``path`` has left something to go on with."""
    return path is not None and len(OutputFolder(path, {}).checkpoint) > 0


class OutputFolder:
    """The folder of one run, as a context manager::

        with OutputFolder("out", identity) as output:
            output.checkpoint.save("level 0", tensors)
            (output.folder / "report.md").write_text(...)

    On entry the target is checked; when the block ends without an error, ``folder`` becomes the target.

    ``overwrite`` replaces an earlier result and discards an interrupted run; ``resume`` goes on with an interrupted
    run of the same ``identity`` and starts afresh where there is none. Raises ``OutputError`` if the target exists,
    cannot be written, or belongs to an interrupted run that neither option speaks of.
    """

    def __init__(
        self, path: str | Path, identity: Mapping[str, Any], *, overwrite: bool = False, resume: bool = False
    ) -> None:
        self.path = Path(os.path.abspath(Path(path).expanduser()))
        if not self.path.name:
            raise OutputError(f"{self.path} cannot be the output folder; name a folder that may be made.")
        self.partial = self.path.with_name(f"{self.path.name}.partial")
        self.folder = self.partial / "result"
        self.identity = json.loads(json.dumps(dict(identity), sort_keys=True, default=str))
        self.overwrite = overwrite
        self.resume = resume
        self.checkpoint = Checkpoint(self.partial / "state")
        self._made: list[Path] = []

    def check(self) -> None:
        """Raise ``OutputError`` where an existing target forbids the run; writes nothing, and needs no identity."""
        try:
            self._check_target()
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise OutputError(f"The output folder {self.path} cannot be read: {reason}; choose another.") from None

    def __enter__(self) -> Self:
        try:
            self._restore()
            self._check_target()
            if os.path.lexists(self.partial):
                self._check_partial()
            self._prepare()
        except OSError as error:
            self._discard()
            reason = error.strerror or type(error).__name__
            raise OutputError(f"The output folder {self.path} cannot be written: {reason}; choose another.") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._commit()
        else:
            self._discard()

    def _check_target(self) -> None:
        if not os.path.lexists(self.path):
            return
        if not self.path.is_dir():
            raise OutputError(f"The output {self.path} is a file; name a folder.")
        if not any(self.path.iterdir()):
            return
        if not self.overwrite:
            raise OutputError(f"The output folder {self.path} is not empty; choose another, or say --overwrite.")
        if not (self.path / MARK).is_file():
            raise OutputError(
                f"The output folder {self.path} holds no earlier result (no {MARK}) and is not overwritten; "
                "choose another, or empty it yourself."
            )

    def _restore(self) -> None:
        """Put back an earlier result that a killed process had set aside and not yet replaced."""
        aside = self.partial / "replaced"
        if aside.is_dir() and not self.path.exists():
            os.replace(aside, self.path)

    def _check_partial(self) -> None:
        """Keep, discard or refuse what an earlier run has left."""
        try:
            earlier = json.loads((self.partial / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            earlier = None
        if not self._is_ours(marked=earlier is not None):
            raise OutputError(f"{self.partial} is in the way and is not the state of a run; move it away.")
        same = earlier == self.identity
        if len(self.checkpoint) and not self.overwrite:
            if not self.resume:
                raise OutputError(
                    f"An interrupted run has left its state in {self.partial}; "
                    "say --resume to go on with it, or --overwrite to start over."
                )
            if earlier is not None and not same:
                raise OutputError(
                    f"The interrupted run in {self.partial} had another recipe ({difference(earlier, self.identity)}); "
                    "use that recipe again, or say --overwrite to start over."
                )
        if not (self.resume and same):
            shutil.rmtree(self.partial)

    def _is_ours(self, marked: bool) -> bool:
        """Whether the partial folder was made here: it says so, or was left before it could."""
        if not self.partial.is_dir():
            return False
        known = {"run.json", "result", "state", "replaced"}
        return marked or all(entry.name in known or entry.name.startswith(".") for entry in self.partial.iterdir())

    def _prepare(self) -> None:
        for parent in reversed(self.path.parents):
            if not parent.exists():
                parent.mkdir()
                self._made.append(parent)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.checkpoint.folder.mkdir(exist_ok=True)
        write_atomically(self.partial / "run.json", json.dumps(self.identity, indent=1).encode())

    def _commit(self) -> None:
        """Put the result into place. An earlier result is set aside first and removed last."""
        for file in self.folder.rglob("*"):
            if file.is_file():
                _flush(file)
        old = self.partial / "replaced"
        try:
            if self.path.is_dir():
                os.replace(self.path, old)
            os.replace(self.folder, self.path)
        except OSError as error:
            if old.exists() and not self.path.exists():
                os.replace(old, self.path)
            raise OutputError(
                f"The result cannot be put into {self.path} ({error}); it lies in {self.folder}."
            ) from None
        _flush(self.path.parent)
        shutil.rmtree(self.partial, ignore_errors=True)

    def _discard(self) -> None:
        """Remove what a run that stopped early has left, except for its state."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if len(self.checkpoint):
            return
        shutil.rmtree(self.partial, ignore_errors=True)
        with contextlib.suppress(OSError):  # a folder that somebody else has used by now stays
            for parent in reversed(self._made):
                parent.rmdir()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that its name never stands for a part of its content, even after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush(path.parent)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Another path of the same suffix, for code that writes files itself: it takes the place of ``path`` where the
    block succeeds, and is removed where it does not."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def difference(earlier: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> str:
    """The first entry in which two JSON objects differ: ```fit.steps` was 100 and is 150``."""
    for key in sorted({*earlier, *now}):
        before, after = earlier.get(key), now.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping) and before != after:
            return difference(before, after, f"{prefix}{key}.")
        if before != after:
            return f"`{prefix}{key}` was {shown(before)} and is {shown(after)}"
    return ""


def _flush(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows has no handle on a folder
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
