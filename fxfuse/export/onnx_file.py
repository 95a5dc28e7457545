"""ONNX files: written by torch's exporter, checked in onnxruntime, and what to say where there can be none."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.onnx import ONNXProgram

from fxfuse.errors import ExportError
from fxfuse.export.onnx_forms import respelled, with_forms
from fxfuse.export.programs import Source, evaluated, exported
from fxfuse.export.tools import (
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
from fxfuse.export.tools import output_names as names_of_outputs
from fxfuse.export.weights_file import CLASSES_KEY

CHECKED_BATCHES = (1, 3, 17)
LEVELS_KEY = "fxfuse.levels"
"""Where the model's metadata holds the table of levels."""
ONNX_TOLERANCE = 1e-3


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
    reference = evaluated(module)
    program = exported(module, example)
    example, keywords = at_least_two(example), keywords_of(program)
    names = list(input_names or argument_names(program))
    with torch.no_grad():
        args, kwargs = arguments(example, keywords)
        output_names = output_names or names_of_outputs(reference(*args, **kwargs), names)
    try:
        written = _translated(program, example, names, output_names)
    except Exception as error:  # torch's exporter raises many kinds; all mean that there is no ONNX file
        raise _no_onnx(error, module, program) from error
    model = written.model
    if level_table is not None:
        model.metadata_props[LEVELS_KEY] = json.dumps([dict(row) for row in level_table])
    if classes:
        model.metadata_props[CLASSES_KEY] = json.dumps(list(classes))
    with staged(path) as temporary:
        with quiet():
            written.save(str(temporary))
        max_abs, max_rel = _check(temporary, reference, (example, keywords), tolerance, path)
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


def _translated(
    program: ExportedProgram, example: tuple[Tensor, ...], inputs: Sequence[str], results: Sequence[str] | None
) -> ONNXProgram:
    """The program in ONNX's operators, in memory. The program is the same afterwards."""
    with quiet():
        spelled = with_forms(program)
    with quiet(), respelled(spelled):
        written = torch.onnx.export(
            spelled,
            dynamo=True,
            optimize=True,
            verbose=False,
            input_names=inputs,
            output_names=results,
            dynamic_shapes=tuple({0: "batch"} if moves else {} for moves in batched(example)),
        )
    assert written is not None  # dynamo=True always returns a program
    return written


def _check(
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
