"""Programs of ``torch.export`` with a dynamic batch, and the ``.pt2`` files that hold them."""

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from fxfuse.errors import ExportError
from fxfuse.export.tools import (
    Sink,
    arguments,
    at_least_two,
    batched,
    differences,
    first_line,
    keywords_of,
    outputs,
    quiet,
    random_inputs,
    staged,
)

PT2_TOLERANCE = 1e-5

Source = nn.Module | ExportedProgram


def to_pt2(module: Source, example: tuple[Tensor, ...], path: str | Path, *, keywords: Sequence[str] = ()) -> Path:
    """Write ``module`` in evaluation mode as a ``torch.export`` program with a dynamic batch; reload it and compare.

    ``keywords`` names the last inputs, if the program is to take them by name: torch's programs take an argument either
    by position or by name.

    Raises ``ExportError`` if it cannot be exported or the reloaded program gives other outputs, ``OutputError`` if
    ``path`` cannot be written.
    """
    path = Path(path)
    reference = evaluated(module)
    program = exported(module, example, keywords)
    example = at_least_two(example)
    with staged(path) as temporary:
        with quiet():
            with Sink(temporary) as sink:
                torch.export.save(program, cast("IO[bytes]", sink))
            reloaded = torch.export.load(temporary).module()
        inputs = random_inputs(example, 3, torch.Generator().manual_seed(0))
        by_name = keywords_of(program)
        wanted = outputs(reference, inputs, by_name if isinstance(module, ExportedProgram) else ())
        largest, relative = differences(wanted, outputs(reloaded, inputs, by_name))
        if not relative <= PT2_TOLERANCE:
            raise ExportError(f"the program written for {path} disagrees with the network by {largest:.3g}")
    return path


def exported(module: Source, example: tuple[Tensor, ...], keywords: Sequence[str] = ()) -> ExportedProgram:
    """``module`` in evaluation mode as a ``torch.export`` program whose batch is dynamic; it takes the last inputs by
    name if ``keywords`` are given. Raises ``ExportError``."""
    if isinstance(module, ExportedProgram):
        return module
    network = evaluated(module)
    example = at_least_two(example)
    args, kwargs = arguments(example, keywords)
    # a named size is strict; where the network's code asks for more than one sample, torch may choose the range
    choices: tuple[Any, ...] = (torch.export.Dim("batch"), torch.export.Dim.DYNAMIC)
    failure: Exception | None = None
    with quiet():
        for size in choices:
            shapes = tuple({0: size} if moves else {} for moves in batched(example))
            try:
                return torch.export.export(network, args, kwargs, dynamic_shapes=_per_argument(network, shapes))
            except Exception as error:  # torch.export raises many kinds; all mean that there is no program
                failure = failure or error
    fixed = re.search(r"(?:inferred|specialized it) to be a constant \((\d+)\)", str(failure))
    reason = f"its code fixes the batch size at {fixed.group(1)}" if fixed else first_line(failure)
    raise ExportError(f"torch.export cannot follow the network with a dynamic batch: {reason}") from failure


def _per_argument(network: nn.Module, shapes: tuple[Any, ...]) -> Any:
    """Shapes as torch.export expects them: a nested tuple where ``forward`` takes ``*args``."""
    code = getattr(type(network).forward, "__code__", None)
    takes_star = code is not None and code.co_flags & 0x04 and code.co_argcount == 1
    return (shapes,) if takes_star else shapes


def evaluated(module: Source) -> nn.Module:
    """A copy on the CPU in evaluation mode; the caller's module stays as it is."""
    if isinstance(module, ExportedProgram):
        with quiet():
            return module.module()
    return copy.deepcopy(module).cpu().eval()
