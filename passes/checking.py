"""The check behind every program: same outputs as the original, on random inputs, at two batch sizes."""

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxfuse.errors import DataError, TraceError
from fxfuse.passes.binding import Bound
from fxfuse.passes.cures import ask, cure, plain_attention
from fxfuse.passes.graphs import copied
from fxfuse.passes.probing import at_batch

TOLERANCE = 1e-5
"""Largest difference in single precision, relative to the largest output."""
TOLERANCE_DOUBLE = 1e-7
"""The same in double precision; constants that were folded keep single precision."""

_GIVEN = (Tensor, bool, int, float, complex, str, type(None), torch.SymInt, torch.SymFloat, torch.SymBool)
"""What a graph's output may be made of."""


def random_like(example: tuple[Tensor, ...], size: int, seed: int) -> tuple[Tensor, ...]:
    """Random inputs of batch ``size``: floats with the example's spread, other types drawn from the example's rows."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for x in at_batch(example, size):
        if x.is_floating_point():
            noise = torch.randn(x.shape, generator=generator).to(x)
            spread = float(x.float().std()) if x.numel() > 1 else 1.0
            result.append(noise * (spread or 1.0) + float(x.float().mean()))
        else:
            result.append(x.flip(0) if seed % 2 and x.dim() else x)
    return tuple(result)


def outputs_at(module: nn.Module, bound: Bound, tensors: tuple[Tensor, ...], name: str) -> Any:
    """What the original returns, as :func:`plain` has it.

    Raises:
        DataError: it rejects the input.
    """
    return plain(answer_at(module, bound, tensors, name))


def answer_at(module: nn.Module, bound: Bound, tensors: tuple[Tensor, ...], name: str) -> Any:
    """What the original returns, as it is; raises as :func:`outputs_at` does."""
    try:
        return ask(module, bound, tensors)
    except Exception as error:  # the user's code may raise anything
        raise DataError(f"{rejection(name, tensors, error)}; {cure(module, bound, tensors)}") from error


def rejection(name: str, tensors: tuple[Tensor, ...], error: Exception) -> str:
    """That the original rejects inputs, and why in its own words."""
    shapes = ", ".join(str(tuple(x.shape)) for x in tensors)
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return f"{name} rejects inputs of shape {shapes}: {reason}"


def plain(output: Any) -> Any:
    """Outputs as tensors, tuples, lists and plain dictionaries. Entries that are ``None`` are kept, and so is the place
    of an object that no graph can give, such as the cache of a language model: as ``None``."""
    if isinstance(output, Mapping):
        return {key: plain(value) for key, value in output.items()}
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {f.name: plain(getattr(output, f.name)) for f in dataclasses.fields(output)}
    if isinstance(output, list):
        return [plain(value) for value in output]
    if isinstance(output, tuple):
        return tuple(plain(value) for value in output)
    return output if isinstance(output, _GIVEN) else None


def left_out(output: Any, path: str = "output") -> Iterator[str]:
    """What :func:`plain` leaves out of an output, in words."""
    if dataclasses.is_dataclass(output) and not isinstance(output, type | Mapping):
        output = {f.name: getattr(output, f.name) for f in dataclasses.fields(output)}
    if isinstance(output, Mapping | list | tuple):
        for key, value in output.items() if isinstance(output, Mapping) else enumerate(output):
            yield from left_out(value, f"{path}[{key!r}]")
    elif not isinstance(output, _GIVEN):
        yield f"{path}, an object of the class {type(output).__name__}"


def flat(output: Any, path: str = "output") -> Iterator[tuple[str, Any]]:
    """The leaves of a plain output with their paths."""
    if isinstance(output, Mapping):
        for key, value in output.items():
            yield from flat(value, f"{path}[{key!r}]")
    elif isinstance(output, tuple | list):
        for index, value in enumerate(output):
            yield from flat(value, f"{path}[{index}]")
    else:
        yield path, output


def check_equal(
    original: nn.Module,
    module: fx.GraphModule,
    bound: Bound,
    inputs: Sequence[tuple[Tensor, ...]],
    expected: Sequence[Any],
) -> None:
    """Compare, in the network's own precision and, if that is not close enough, in double precision.

    Raises:
        TraceError: the graph computes something else.
    """
    for tensors, want in zip(inputs, expected, strict=True):
        with torch.no_grad():
            have = plain(module(*(x.clone() for x in tensors)))
        worst, where = difference(want, have)
        if worst <= TOLERANCE:
            continue
        if worst < 0.5 and _equal_in_double(original, module, bound, tensors):
            continue
        much = f" by {worst:.2g} of its largest value" if math.isfinite(worst) else ""
        raise TraceError(f"the graph differs from the network in {where}{much} at batch size {tensors[0].shape[0]}")


def _equal_in_double(original: nn.Module, module: fx.GraphModule, bound: Bound, tensors: tuple[Tensor, ...]) -> bool:
    first, second = copied(original).double(), copy.deepcopy(module).double()
    double = tuple(x.double() if x.is_floating_point() else x for x in tensors)
    args, kwargs = bound.call(tuple(x.clone() for x in double))
    try:
        with torch.no_grad(), plain_attention():
            worst, _ = difference(plain(first(*args, **kwargs)), plain(second(*double)))
    except Exception:  # a network that is written for single precision only
        return False
    return worst <= TOLERANCE_DOUBLE


def difference(want: Any, have: Any) -> tuple[float, str]:
    """The largest relative difference of two plain outputs and where it is; infinite if their structures differ."""
    wanted, had = list(flat(want)), list(flat(have))
    if [path for path, _ in wanted] != [path for path, _ in had]:
        return float("inf"), "the output's structure"
    worst, where = 0.0, "output"
    for (path, a), (_, b) in zip(wanted, had, strict=True):
        error = _difference(a, b)
        if error > worst:
            worst, where = error, path
    return worst, where


def _difference(a: Any, b: Any) -> float:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return 0.0 if type(a) is type(b) and a == b else float("inf")
    if a.shape != b.shape:
        return float("inf")
    if a.numel() == 0:
        return 0.0
    a, b = a.detach(), b.detach()
    if not a.is_floating_point():
        return 0.0 if torch.equal(a, b) else float("inf")
    a, b = a.double(), b.double()
    same = (a == b) | (a.isnan() & b.isnan())
    gap = torch.where(same, torch.zeros_like(a), (a - b).abs())
    scale = float(a[a.isfinite()].abs().max()) if bool(a.isfinite().any()) else 1.0
    worst = float(gap.nan_to_num(nan=float("inf")).max())
    return worst / scale if scale > 0 else worst
