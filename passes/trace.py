"""Trace: a module and an example become a ``Program``, a canonical graph that provably computes the same.

Front ends, in order: ``torch.fx`` with proxies that know their values (:mod:`fxfuse.passes.symbolic`), ``torch.export``
(:mod:`fxfuse.passes.lift`) where that fails, and at last ``torch.fx`` with the innermost failing module as a leaf. What
comes out is normalised (:mod:`fxfuse.passes.normalize`) and compared with the original on random inputs at two batch
sizes. The parent itself is never touched: everything works on a copy.
"""

import contextlib
import linecache
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from fxfuse.errors import TraceError, nearest
from fxfuse.passes.binding import Bound, bind, capture
from fxfuse.passes.checking import (
    TOLERANCE,
    answer_at,
    check_equal,
    difference,
    flat,
    left_out,
    outputs_at,
    plain,
    random_like,
    rejection,
)
from fxfuse.passes.cures import ask
from fxfuse.passes.graphs import CanonicalModule, assemble, copied, is_torch_leaf, overlapping
from fxfuse.passes.lift import export_trace
from fxfuse.passes.normalize import normalize
from fxfuse.passes.packing import padded_sequences
from fxfuse.passes.probing import LANES, PROBE, at_batch, clear_probes
from fxfuse.passes.symbolic import is_user_file, symbolic_trace
from fxfuse.types import FrontEnd, Program

Example = Tensor | tuple[Any, ...] | Mapping[str, Any]


@contextlib.contextmanager
def _as_written() -> Iterator[None]:
    """What ``torch.compile`` wraps runs as it was written: a graph is made of the code, and nothing is compiled for the
    few runs that check it."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and importing it takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"), torch._dynamo.config.patch(error_on_nested_fx_trace=False):
        yield


@_as_written()
def trace(
    module: nn.Module,
    example: Example,
    *,
    name: str = "parent",
    leaves: Sequence[str] = (),
    submodule: str | None = None,
    front_end: Literal["auto", "fx", "export"] = "auto",
    copy: bool = True,
) -> Program:
    """Turn ``module`` into a canonical graph.

    Args:
        module: the trained network; never changed.
        example: what ``forward`` takes: a tensor, a tuple of positional arguments, or a mapping of keyword arguments.
            Tensors become graph inputs under the names of their arguments and in the order of ``forward``, everything
            else (and every argument not given) is fixed at its value. The first dimension of the first input is the
            batch; tensors with the same first dimension share it.
        name: how messages call this network.
        leaves: paths or class names of modules to keep as one opaque node, which torch.fx can and
            torch.export cannot; paths are those of the whole or of ``submodule``.
        submodule: path of a module inside ``module``; only that one is traced, on the inputs that it receives when
            ``module`` runs on ``example``.
        front_end: which front end may be used.
        copy: whether the program has parameters of its own. Without, they are the network's, which saves their memory.

    Returns:
        A program whose module has the state dict of ``module`` (or of the sub-module), to the letter.

    Raises:
        TraceError: no front end can follow the code, and the message names the line; or leaves for torch.export alone.
        DataError: the module rejects the example.
    """
    twin = copied(module, share=not copy).eval()
    if submodule is not None:
        bound, twin = capture(twin, example, submodule, name)
        leaves = [leaf.removeprefix(f"{submodule}.") for leaf in leaves]
    else:
        bound = bind(twin, example, name)
    _check_open(twin, name)
    _check_leaves(twin, leaves, name, front_end)
    fresh = copied(twin, share=True)  # a network may keep what it has seen (anchors for the last size of image)
    ours = _check_outputs(answer_at(twin, bound, bound.tensors, name), name)
    ours += tuple(
        f"{one} and {other} share memory in different shapes: fused, they are two tensors, and when they are loaded "
        "into the network's own class one overwrites the other; use the graph, or let forward transpose one parameter"
        for one, other in overlapping(module)
    )
    inputs = [random_like(bound.tensors, size, seed) for seed, size in enumerate(LANES)]
    expected = [_other_batch(twin, bound, x, name) for x in inputs]
    failures: dict[str, str] = {}
    for attempt in _attempts(front_end):
        try:
            program = attempt(fresh, bound, tuple(leaves))
            check_equal(twin, program.module, bound, inputs, expected)
        except Exception as error:  # front ends and the user's code raise anything; the next front end may do better
            failures[attempt.__name__] = describe(error)
            continue
        tried = (f"tried first and not taken, {reason}" for reason in _listed(failures))
        notes = (*bound.notes, *ours, *tried, *program.notes)
        example = tuple(x.detach().clone() for x in at_batch(bound.tensors, max(2, bound.tensors[0].shape[0])))
        return Program(name, program.module, example, program.front_end, notes, bound.keywords)
    _check_repeats(twin, bound, inputs[0], expected[0], name)
    raise TraceError(
        f"{name} cannot be turned into a graph. {'; '.join(_listed(failures))}. Name the module that cannot be "
        "followed as a leaf (leaves, --leaf), which keeps it whole, or take only a part of the network (submodule, "
        "--submodule)"
    )


def _other_batch(module: nn.Module, bound: Bound, tensors: tuple[Tensor, ...], name: str) -> Any:
    """What the network returns at another batch size than the example's; raises where it takes none."""
    try:
        return plain(ask(module, bound, tensors))
    except Exception as error:  # the user's code may raise anything
        raise TraceError(
            f"{name} takes the example but no other batch size; the batch must stay free: "
            f"{rejection(name, tensors, error)}"
        ) from error


def _check_repeats(module: nn.Module, bound: Bound, tensors: tuple[Tensor, ...], first: Any, name: str) -> None:
    """Raise where the network itself answers the same inputs differently each time: no graph could equal it."""
    worst, where = difference(first, outputs_at(module, bound, tensors, name))
    if worst > TOLERANCE:
        raise TraceError(
            f"{name} answers the same inputs differently each time: {where} changes between two runs in evaluation "
            "mode. Something in it draws at random or counts its calls; pass the noise as an input, switch the drawing "
            "off in evaluation mode, or take a part without it (submodule, --submodule)"
        )


def _check_outputs(answer: Any, name: str) -> tuple[str, ...]:
    """Notes on outputs that no graph can give; raises where there are no others."""
    others = list(left_out(answer))
    if not any(isinstance(x, Tensor) for _, x in flat(plain(answer))):
        raise TraceError(
            f"{name} returns no tensors{': ' + '; '.join(others) if others else ''}. Take a part of the network that "
            "does (submodule, --submodule)"
        )
    return tuple(f"{what}, is left out: a graph gives tensors only" for what in others)


def _check_open(module: nn.Module, name: str) -> None:
    for path, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise TraceError(
                f"{name} holds compiled TorchScript at {path or 'its root'}, whose parameters no graph can own; give "
                "the Python module that it was compiled from, or take a part of the network without it (submodule, "
                "--submodule)"
            )


def _check_leaves(module: nn.Module, leaves: Sequence[str], name: str, front_end: str) -> None:
    known = {path for path, _ in module.named_modules() if path} | {type(part).__name__ for part in module.modules()}
    for leaf in leaves:
        if leaf not in known:
            raise TraceError(
                f"{name} has no module of the path or class {leaf!r} to keep whole; {nearest(leaf, known)}"
            )
    if leaves and front_end == "export":
        raise TraceError(
            f"{name}: torch.export goes through every module and keeps none whole; leave out the leaves, or the front "
            "end 'export'"
        )


def _listed(failures: dict[str, str]) -> list[str]:
    """What stopped each front end; those that stopped for the same reason share a sentence."""
    shared: dict[str, list[str]] = {}
    for front_end, reason in failures.items():
        shared.setdefault(reason, []).append(front_end)
    return [f"{' and '.join(names)}: {reason}" for reason, names in shared.items()]


@dataclass(frozen=True, slots=True)
class _Traced:
    module: CanonicalModule
    front_end: FrontEnd
    notes: tuple[str, ...]


Attempt = Callable[[nn.Module, Bound, tuple[str, ...]], _Traced]


def _attempts(front_end: str) -> list[Attempt]:
    known: dict[str, list[Attempt]] = {
        "auto": [torch_fx, torch_export, torch_fx_with_leaves],
        "fx": [torch_fx, torch_fx_with_leaves],
        "export": [torch_export],
    }
    if front_end not in known:
        raise TraceError(f"front_end must be one of {', '.join(map(repr, known))}. Got {front_end!r}")
    return known[front_end]


def torch_fx(module: nn.Module, bound: Bound, leaves: tuple[str, ...]) -> _Traced:
    """Symbolic tracing."""
    module = copied(module, share=True)  # tracing may leave marks on it, and other front ends may have to try again
    with padded_sequences(lambda x: isinstance(x, fx.Proxy)) as notes:
        graph, prober = symbolic_trace(module, bound.tensors, (bound.positional, bound.named), leaves)
    result = assemble(module, graph)
    result.meta[PROBE] = prober
    checks = [f"the check at {place} depends on the data and is taken to hold" for place in prober.assumed]
    return _finish(result, bound, "fx", (*notes, *checks))


def torch_export(module: nn.Module, bound: Bound, leaves: tuple[str, ...]) -> _Traced:
    """``torch.export`` with a dynamic batch; it keeps no module whole."""
    opened = (f"torch.export goes through every module: {', '.join(leaves)} is not kept whole",) if leaves else ()
    with padded_sequences(lambda x: isinstance(x, Tensor)) as notes:
        result = export_trace(copied(module, share=True), bound)
    return _finish(result, bound, "export", (*notes, *opened))


def torch_fx_with_leaves(module: nn.Module, bound: Bound, leaves: tuple[str, ...]) -> _Traced:
    """Symbolic tracing, with each module that cannot be followed kept as a leaf."""
    found: list[str] = []
    while True:
        try:
            traced = torch_fx(module, bound, (*leaves, *found))
        except Exception as error:  # whatever the user's code raises while it is being traced
            inner = _innermost(module, error)
            if not inner or inner in found:
                raise
            found.append(inner)
            continue
        note = tuple(f"{path} is kept as one opaque node: its code cannot be followed" for path in found)
        return _Traced(traced.module, "fx", (*traced.notes, *note))


def _innermost(module: nn.Module, error: BaseException) -> str:
    """The path of the innermost module, other than the root, that was running when ``error`` was raised.

    Tracing works on a copy, so modules are told apart by their class and by their place: the path is read from the
    copy that the traceback holds.
    """
    running: list[nn.Module] = []
    step = error.__traceback__
    while step is not None:
        owner = step.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and not is_torch_leaf(owner) and (not running or running[-1] is not owner):
            running.append(owner)
        step = step.tb_next
    roots = [m for m in running if type(m) is type(module)]
    if not roots:
        return ""
    paths = {id(m): path for path, m in roots[0].named_modules()}
    known = [paths[id(m)] for m in running if paths.get(id(m))]
    return known[-1] if known else ""


def _finish(result: CanonicalModule, bound: Bound, front_end: FrontEnd, notes: tuple[str, ...]) -> _Traced:
    changed = normalize(result, bound.tensors)
    clear_probes(result)
    result.eval()
    return _Traced(result, front_end, (*notes, *changed))


def describe(error: BaseException) -> str:
    """An error with the innermost line of the user's code that it came through."""
    place = ""
    step = error.__traceback__
    while step is not None:
        file, line = step.tb_frame.f_code.co_filename, step.tb_lineno
        if is_user_file(file):
            place = f" at {Path(file).name}:{line} `{linecache.getline(file, line).strip()}`"
        step = step.tb_next
    text = str(error).strip().split("\n")[0] or type(error).__name__
    if isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
        text = f"what {text} gives depends on the data"
    return f"{text}{place}"
