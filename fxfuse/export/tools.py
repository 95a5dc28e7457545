"""What the exporters share: inputs to try a written network on, the distance between outputs, files that
appear whole.
"""

import contextlib
import io
import logging
import math
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves, tree_unflatten

from fxfuse.errors import FuseError, OutputError


def random_inputs(example: tuple[Tensor, ...], batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Inputs like ``example`` for another batch size.

    Entries are drawn from the example's own, so that token numbers, masks and value ranges stay valid; an example
    of floats that are all the same is replaced by draws from N(0, 1). Inputs without a batch are kept.
    """
    return tuple(
        _draw(x.detach().cpu(), batch, generator) if moves else x.detach().cpu()
        for x, moves in zip(example, batched(example), strict=True)
    )


def _draw(x: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    shape = (batch, *x.shape[1:])
    if x.is_floating_point() and x.numel() and bool((x == x.flatten()[0]).all()):
        return torch.randn(shape, generator=generator).to(x.dtype)
    if not x.numel():
        return x.new_zeros(shape)
    size = torch.Size(shape).numel()
    return x.flatten()[torch.randint(x.numel(), (size,), generator=generator)].reshape(shape)


def differences(expected: Sequence[Tensor], got: Sequence[Tensor]) -> tuple[float, float]:
    """Largest absolute difference, and largest difference relative to the largest entry of the same output.

    Equal infinities and two NaN count as equal; a NaN on one side only, or another shape, as infinitely far.
    """
    if len(expected) != len(got):
        return math.inf, math.inf
    largest = relative = 0.0
    for y, z in zip(expected, got, strict=True):
        if y.shape != z.shape:
            return math.inf, math.inf
        a, b = y.double(), z.double()
        gap = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs()).nan_to_num(
            nan=math.inf, posinf=math.inf
        )
        if not gap.numel():
            continue
        finite = a[a.isfinite()].abs()
        scale = float(finite.max()) if finite.numel() else 0.0
        worst = float(gap.max())
        largest = max(largest, worst)
        relative = max(relative, worst / max(scale, torch.finfo(torch.float32).tiny))
    return largest, relative


def outputs(module: nn.Module, inputs: tuple[Tensor, ...], keywords: Sequence[str] = ()) -> list[Tensor]:
    """The tensors among a module's outputs, in order; it takes the last inputs by name if ``keywords`` are given."""
    args, kwargs = arguments(inputs, keywords)
    with torch.no_grad():
        return [y for y in tree_leaves(module(*args, **kwargs)) if isinstance(y, Tensor)]


def arguments(inputs: tuple[Tensor, ...], keywords: Sequence[str]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Inputs as positional arguments and, the last ones, as arguments by name."""
    count = len(inputs) - len(keywords)
    return inputs[:count], dict(zip(keywords, inputs[count:], strict=True))


def keywords_of(program: ExportedProgram) -> tuple[str, ...]:
    """The names of the inputs that a program takes by name alone; they come last."""
    spec = program.call_spec.in_spec
    if spec is None or spec.num_children != 2:
        return ()
    _, named = tree_unflatten(range(spec.num_leaves), spec)  # which all versions of torch understand
    return tuple(map(str, named)) if isinstance(named, dict) else ()


def argument_names(program: ExportedProgram) -> tuple[str, ...]:
    """What a program's inputs are called, as far as they are tensors."""
    names = [str(name) for name in program.graph_signature.user_inputs]
    keywords = keywords_of(program)
    return (*names[: len(names) - len(keywords)], *keywords)


def output_names(output: Any, inputs: Sequence[str]) -> list[str] | None:
    """The keys of a mapping of tensors as names of the outputs, where each is a tensor and a name of its own."""
    if not isinstance(output, Mapping):
        return None
    tensors = {str(key): value for key, value in output.items() if value is not None}
    distinct = len({id(value) for value in tensors.values()}) == len(tensors) and not tensors.keys() & set(inputs)
    return list(tensors) if distinct and all(isinstance(y, Tensor) for y in tensors.values()) else None


def batched(example: tuple[Tensor, ...]) -> tuple[bool, ...]:
    """Which inputs carry the batch in their first dimension: those that agree with the first one there."""
    batch = next((x.shape[0] for x in example if x.dim()), None)
    return tuple(x.dim() > 0 and x.shape[0] == batch for x in example)


def at_least_two(example: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The example on the CPU with two samples or more: torch.export takes a batch of one for a constant."""
    moves = batched(example)
    on_cpu = tuple(x.detach().cpu() for x in example)
    return tuple(torch.cat([x, x]) if move and x.shape[0] == 1 else x for x, move in zip(on_cpu, moves, strict=True))


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A temporary path with the name of ``path``; what stands beside it moves into place when the block succeeds."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=".fxfuse-", dir=path.parent))
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        yield folder / path.name
        # weights beside an ONNX file first: the file that names them must not appear before them
        for file in sorted(folder.iterdir(), key=lambda item: item.name == path.name):
            os.replace(file, path.parent / file.name)
    except FuseError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Sink(io.RawIOBase):
    """A file to write whose first failure is raised when it is closed, not when it happens: torch's archives are
    written by C++, which ends the whole process where a write fails."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("wb")
        self._error: OSError | None = None

    def writable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any) -> int:
        """Write as long as it goes well; all of ``data`` counts as written."""
        if self._error is None:
            try:
                self._stream.write(data)
            except OSError as error:
                self._error = error
        return memoryview(data).nbytes

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Where nothing can be written, nothing needs to be found."""
        try:
            return self._stream.seek(offset, whence)
        except OSError as error:  # moving writes what is still in memory
            self._error = self._error or error
            return 0

    def close(self) -> None:
        """Close the file. Raises the first ``OSError`` that there was."""
        if self.closed:
            return
        super().close()
        try:
            self._stream.close()
        except OSError as error:
            self._error = self._error or error
        if self._error is not None:
            raise self._error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' warnings, log lines and prints: they speak of torch's inside, not of the network."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def first_line(error: BaseException | None) -> str:
    """The first line of an error's message that says something, without colours."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
