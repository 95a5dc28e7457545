"""Write a network so that others can run it, and check what was written against the network itself.

Three formats: ONNX (checked in onnxruntime at batch sizes 1, 3 and 17), a ``torch.export`` program (``.pt2``, which
loads without fxfuse and without the user's code: tracing dissolves every helper function into torch's own operators),
and safetensors. The batch is dynamic in all of them.

With ``y`` the network's outputs and ``z`` those of the written file, the differences reported are
``max |y - z|`` and ``max |y - z| / max |y|``, each the largest over outputs and batch sizes.

A file is written and checked under a temporary name beside its target and moved into place only if it passes, so
that a failure leaves nothing behind.
"""

import copy
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from fxfuse.errors import ExportError, SourceError, WeightsError
from fxfuse.export_tools import (
    argument_names,
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
from fxfuse.export_tools import output_names as names_of_outputs
from fxfuse.onnx_forms import respelled, with_forms

CHECKED_BATCHES = (1, 3, 17)
LEVELS_KEY = "fxfuse.levels"
CLASSES_KEY = "fxfuse.classes"
ONNX_TOLERANCE = 1e-3
PT2_TOLERANCE = 1e-5

Source = nn.Module | ExportedProgram


@dataclass(frozen=True, slots=True)
class OnnxReport:
    """What was written, and how far onnxruntime is from the network on random inputs of the given batch sizes."""

    path: Path
    opset: int
    nodes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    batches: tuple[int, ...]
    max_abs: float
    max_rel: float


@dataclass(frozen=True, slots=True)
class LoadedResult:
    """An output folder read back: ``module`` computes the fused network, ``example`` is a small batch of its inputs,
    ``names`` what these are called, of which the last, the ``keywords``, are taken by name alone. ``levels`` are the
    rows of ``levels.json`` (empty if there is no such file), ``classes`` the names of the head's rows where the parents
    had label maps."""

    folder: Path
    program: ExportedProgram
    module: fx.GraphModule
    example: tuple[Tensor, ...]
    levels: tuple[dict[str, Any], ...]
    classes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------------- ONNX


def to_onnx(
    module: Source,
    example: tuple[Tensor, ...],
    path: str | Path,
    *,
    level_table: Sequence[Mapping[str, Any]] | None = None,
    classes: Sequence[str] = (),
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    tolerance: float = ONNX_TOLERANCE,
) -> OnnxReport:
    """Write ``module`` in evaluation mode as ONNX with a dynamic batch, and check it in onnxruntime.

    ``example`` is one small batch of inputs, first dimension the batch; inputs whose first dimension differs from the
    first input's keep their size. ``level_table`` is stored as JSON under ``fxfuse.levels`` in the model's metadata,
    the names of the ``classes``, in the order of the outputs, under ``fxfuse.classes``. Unless ``input_names`` and
    ``output_names`` say otherwise, inputs are called as the arguments of ``forward`` and outputs, where they are a
    mapping of tensors, as its keys.

    Raises ``ExportError`` if an operator has no ONNX form (the message names it and where it stands), if the batch
    cannot be dynamic, or if the written file's relative difference exceeds ``tolerance``; ``OutputError`` if ``path``
    cannot be written. No file is left behind then.
    """
    path = Path(path)
    reference = _evaluated(module)
    program = exported(module, example)
    example, keywords = at_least_two(example), keywords_of(program)
    names = list(input_names or argument_names(program))
    with torch.no_grad():
        args, kwargs = arguments(example, keywords)
        output_names = output_names or names_of_outputs(reference(*args, **kwargs), names)
    with quiet():
        program = with_forms(program)
    with quiet(), respelled(program):
        try:
            onnx_program = torch.onnx.export(
                program,
                dynamo=True,
                optimize=True,
                verbose=False,
                input_names=names,
                output_names=output_names,
                dynamic_shapes=tuple({0: "batch"} if moves else {} for moves in batched(example)),
            )
        except Exception as error:  # torch's exporter raises many kinds; all mean that there is no ONNX file
            raise _no_onnx(error, module, program) from error
    assert onnx_program is not None  # dynamo=True always returns a program
    model = onnx_program.model
    if level_table is not None:
        model.metadata_props[LEVELS_KEY] = json.dumps([dict(row) for row in level_table])
    if classes:
        model.metadata_props[CLASSES_KEY] = json.dumps(list(classes))
    with staged(path) as temporary:
        with quiet():
            onnx_program.save(str(temporary))
        max_abs, max_rel = _check_onnx(temporary, reference, (example, keywords), tolerance, path)
    return OnnxReport(
        path=path,
        opset=int(model.opset_imports[""]),
        nodes=sum(1 for _ in model.graph),
        inputs=tuple(str(value.name) for value in model.graph.inputs),
        outputs=tuple(str(value.name) for value in model.graph.outputs),
        batches=CHECKED_BATCHES,
        max_abs=max_abs,
        max_rel=max_rel,
    )


def _check_onnx(
    file: Path, reference: nn.Module, shown: tuple[tuple[Tensor, ...], tuple[str, ...]], tolerance: float, path: Path
) -> tuple[float, float]:
    """The largest differences between the network and ``file`` in onnxruntime; ``shown`` are the example's tensors and
    the names of those that the network takes by name."""
    import onnxruntime as ort

    options = ort.SessionOptions()  # type: ignore[attr-defined]  # exported without saying so
    options.log_severity_level = 3
    generator = torch.Generator().manual_seed(0)
    worst = (0.0, 0.0)
    try:
        session = ort.InferenceSession(  # type: ignore[attr-defined]  # same
            str(file), options, providers=["CPUExecutionProvider"]
        )
        names = [value.name for value in session.get_inputs()]
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise ExportError(f"onnxruntime cannot load the network written for {path}: {first_line(error)}") from error
    for batch in CHECKED_BATCHES:
        inputs = random_inputs(shown[0], batch, generator)
        expected = outputs(reference, inputs, shown[1])
        # the exporter keeps inputs that the network never reads, so names and inputs pair up
        feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        try:
            got = [torch.as_tensor(value) for value in session.run(None, feed)]
        except Exception as error:  # the same
            message = f"onnxruntime cannot run the network written for {path} at batch size {batch}"
            raise ExportError(f"{message}: {first_line(error)}") from error
        found = differences(expected, got)
        if not found[1] <= tolerance:
            raise ExportError(
                f"the ONNX file for {path} disagrees with the network at batch size {batch}: largest difference "
                f"{found[0]:.3g} ({found[1]:.3g} of the largest output, allowed {tolerance:g})"
            )
        worst = (max(worst[0], found[0]), max(worst[1], found[1]))
    return worst


def _no_onnx(error: BaseException, module: Source, program: ExportedProgram) -> ExportError:
    """An error that names the operator without an ONNX form, and where it stands."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    text = "\n".join(str(item) for item in chain)
    missing = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", text)
    if missing is None:
        return ExportError(f"torch cannot write the network as ONNX: {first_line(chain[-1])}")
    operator = missing.group(1)
    where = _where(operator, module, program)
    return ExportError(
        f"no ONNX form for operator {operator}{where} - replace it in the model, or keep the .pt2 file, which has no "
        "such limit"
    )


def _where(operator: str, module: Source, program: ExportedProgram) -> str:
    """`` at node ... (file.py:12)`` of the operator, looked up by its bare name; decompositions keep that name."""
    bare = operator.split(".")[-1].removeprefix("aten::").strip("_")
    graphs = [module.graph] if isinstance(module, fx.GraphModule) else []
    for graph in (*graphs, program.graph):
        for node in graph.nodes:
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
            words = (name, name.split(".")[0]) if node.op != "placeholder" else ()
            if any(word == bare or word.endswith(f"_{bare}") or word.endswith(f".{bare}") for word in words):
                places = re.findall(r'File "([^"]+)", line (\d+)', node.stack_trace or "")
                own = [place for place in places if f"{os.sep}torch{os.sep}" not in place[0]] or places
                source = f" ({Path(own[-1][0]).name}:{own[-1][1]})" if own else ""
                return f" at node '{node.name}'{source}"
    return ""


# ------------------------------------------------------------------------------------------- .pt2


def to_pt2(module: Source, example: tuple[Tensor, ...], path: str | Path, *, keywords: Sequence[str] = ()) -> Path:
    """Write ``module`` in evaluation mode as a ``torch.export`` program with a dynamic batch; reload it and compare.

    ``keywords`` names the last inputs, if the program is to take them by name: torch's programs take an argument either
    by position or by name.

    Raises ``ExportError`` if it cannot be exported or the reloaded program gives other outputs, ``OutputError`` if
    ``path`` cannot be written.
    """
    path = Path(path)
    reference = _evaluated(module)
    program = exported(module, example, keywords)
    example = at_least_two(example)
    with staged(path) as temporary:
        with quiet():
            torch.export.save(program, temporary)
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
    network = _evaluated(module)
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


def _evaluated(module: Source) -> nn.Module:
    """A copy on the CPU in evaluation mode; the caller's module stays as it is."""
    if isinstance(module, ExportedProgram):
        with quiet():
            return module.module()
    return copy.deepcopy(module).cpu().eval()


# ------------------------------------------------------------------------------------------- safetensors


def to_safetensors(module: Source, path: str | Path, metadata: Mapping[str, str] | None = None) -> Path:
    """Write the state dict. Entries that share storage are written once each, so that any reader can load the file
    with ``strict=True``; the metadata's ``tied`` says which they were.

    Raises ``ExportError`` for state that is no tensor, ``OutputError`` if ``path`` cannot be written.
    """
    path = Path(path)
    state = module.state_dict if isinstance(module, ExportedProgram) else module.state_dict()
    owners: dict[tuple[object, ...], list[str]] = {}
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ExportError(
                f"'{name}' in the state dict is a {type(value).__name__}, not a tensor, and safetensors holds "
                "nothing else; register tensors as buffers, and keep other state out of it"
            )
        if value.numel():
            key = (value.untyped_storage().data_ptr(), value.storage_offset(), tuple(value.shape))
            owners.setdefault(key, []).append(name)
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
    tied = [names for names in owners.values() if len(names) > 1]
    words = {**(metadata or {}), "format": "pt", **({"tied": json.dumps(tied)} if tied else {})}
    with staged(path) as temporary:
        save_file(tensors, temporary, metadata=words)
    return path


# ------------------------------------------------------------------------------------------- reading back


def load_result(folder: str | Path) -> LoadedResult:
    """Read an output folder: the program of ``model.pt2`` with the weights of ``model.safetensors``.

    Raises ``SourceError`` if the folder is no result, ``WeightsError`` if the two files do not belong together.
    """
    folder = Path(folder)
    program_file, weights_file, levels_file = (folder / n for n in ("model.pt2", "model.safetensors", "levels.json"))
    for needed in (program_file, weights_file):
        if not needed.is_file():
            raise SourceError(f"{folder} is not a result of fxfuse: it has no {needed.name}")
    try:
        with quiet():
            program = torch.export.load(program_file)
    except Exception as error:  # torch documents none here, and a damaged archive raises nearly anything
        raise SourceError(f"cannot load {program_file}: {first_line(error)}") from error
    classes = _adopt(program, weights_file)
    example = tuple(x for x in tree_leaves(program.example_inputs or ()) if isinstance(x, Tensor))
    if not example:
        raise SourceError(f"{program_file} holds no example inputs; write it with fxfuse")
    with quiet():
        module = program.module()
    names, keywords = argument_names(program), keywords_of(program)
    return LoadedResult(folder, program, module, example, _levels(levels_file), classes, names, keywords)


def _adopt(program: ExportedProgram, weights_file: Path) -> tuple[str, ...]:
    """Copy the weights of a safetensors file into a program; the names of its classes, if it has any."""
    try:
        weights = load_file(weights_file)
        with safe_open(weights_file, framework="pt") as file:
            classes = json.loads((file.metadata() or {}).get(CLASSES_KEY, "[]"))
    except (OSError, SafetensorError, ValueError) as error:
        raise WeightsError(f"cannot load {weights_file}: {first_line(error)}") from error
    state = program.state_dict
    missing, unknown = state.keys() - weights.keys(), weights.keys() - state.keys()
    if missing or unknown:
        name = min(missing or unknown)
        problem = "misses" if missing else "has the unexpected entry"
        raise WeightsError(f"{weights_file} {problem} '{name}'; it does not belong to the model.pt2 beside it")
    with torch.no_grad():
        for name, value in weights.items():
            if state[name].shape != value.shape:
                shapes = f"{tuple(value.shape)} instead of {tuple(state[name].shape)}"
                raise WeightsError(f"'{name}' in {weights_file} has shape {shapes}, as in the model.pt2 beside it")
            state[name].copy_(value)
    return tuple(map(str, classes))


def _levels(file: Path) -> tuple[dict[str, Any], ...]:
    if not file.is_file():
        return ()
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        return tuple(dict(row) for row in data["levels"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"cannot read {file}: {first_line(error)}") from error
