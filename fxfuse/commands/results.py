"""``fxfuse export`` and ``fxfuse eval``: what can be done with a result."""

import json
from typing import Annotated

import typer

from fxfuse.commands.shared import DeviceName, Json
from fxfuse.options import data_of


def export_command(
    result: Annotated[str, typer.Argument(help="An output folder of `fxfuse fuse`.")],
    onnx: Annotated[str, typer.Option("--onnx", metavar="FILE", help="The ONNX file to write.")],
    as_json: Json = False,
) -> None:
    """Write a fused network as ONNX with a free batch size, checked in onnxruntime at batch 1, 3 and 17.

    Example: `fxfuse export fused --onnx fused.onnx`
    """
    from fxfuse.console import make_console, onnx_json, onnx_sentence, say
    from fxfuse.results import export

    report = export(result, onnx)
    if as_json:
        print(json.dumps(onnx_json(report)))
    else:
        say(make_console(), f"written: {report.path}", onnx_sentence(report))


def eval_command(
    result: Annotated[str, typer.Argument(help="An output folder of `fxfuse fuse`.")],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="A source, read as the recipe beside the result says of its data; or a mapping that says all, "
            "'{source: images, preprocessing: {mean: 0.5, std: 0.5}}'. Default: the recipe's evaluation data.",
        ),
    ] = None,
    device: DeviceName = "auto",
    as_json: Json = False,
) -> None:
    """Measure a fused network on labelled data.

    Example: `fxfuse eval fused --data test.npz`
    """
    import dataclasses

    from fxfuse.console import make_console, score_table
    from fxfuse.recipe import DataSpec
    from fxfuse.results import evaluate

    given = data_of(data)
    score, description = evaluate(result, DataSpec(**given) if isinstance(given, dict) else given, device)
    if as_json:
        print(json.dumps({**dataclasses.asdict(score), "data": description}))
    else:
        make_console().print(score_table(score, f"on {description}"))
