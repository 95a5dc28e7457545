"""``fxfuse inspect``: what the compiler finds out about one network."""

import json
import sys
from typing import Annotated

import typer

from fxfuse.commands.shared import Json
from fxfuse.options import data_of, granularity_of


def inspect_command(
    source: Annotated[
        str, typer.Argument(help="module:factory, net.py:factory(width=32), torchvision:resnet18 or a .pt2 program.")
    ],
    weights: Annotated[str | None, typer.Option("--weights", "-w", metavar="FILE", help="Its weight file.")] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            "-i",
            metavar="SIZES",
            help="[name=]sizes[:type], batch first: 1,3,224,224 or input_ids=1,16:int64. Repeat for several inputs. "
            "Without it a usual one is tried, and said.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "--calibration",
            metavar="DATA",
            help="Take the inputs from data, written as for `fxfuse fuse --calibration`: the first samples are used.",
        ),
    ] = None,
    granularity: Annotated[
        str, typer.Option(help="Where levels end: block, layer, how many, or names: a,b,c.")
    ] = "block",
    out: Annotated[
        list[str] | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Write it as the suffix says: .svg .png .html .md .json .graphml .dot .gv .mmd .mermaid; repeat.",
        ),
    ] = None,
    spaces: Annotated[bool, typer.Option("--spaces", help="Print the neuron spaces too.")] = False,
    leaf: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A module (path or class name) to keep whole; repeat.")
    ] = None,
    submodule: Annotated[str | None, typer.Option(help="Look at this module of the network only.")] = None,
    front_end: Annotated[str, typer.Option(help="What makes the graph: auto, fx or export.")] = "auto",
    as_json: Json = False,
) -> None:
    """Trace a network, find its neurons, cut it into levels, and print them.

    Examples:

    `fxfuse inspect torchvision:resnet18 --input 1,3,224,224 --out resnet18.svg`

    `fxfuse inspect net.py:build --weights a.safetensors --granularity layer --json`
    """
    from fxfuse.console import analysis_notes, make_console, say
    from fxfuse.dumps import check_partition_file, level_table, opaque_table, space_table, write_partition
    from fxfuse.inspection import inspect
    from fxfuse.partition_record import summarise, to_json
    from fxfuse.recipe import ParentSpec

    for path in out or []:
        check_partition_file(path)
    found = inspect(
        ParentSpec(source=source, weights=weights),
        inputs or (),
        data_of(data),
        granularity=granularity_of(granularity),
        leaves=tuple(leaf or ()),
        submodule=submodule,
        front_end=front_end,
    )
    analysis = found.analysis
    if found.guessed is not None:
        print(f"note: no --input given; guessed --input {found.guessed}, which the network takes", file=sys.stderr)
    for path in out or []:
        write_partition(analysis, path)
    if as_json:
        print(json.dumps(to_json(summarise(analysis))))
        return
    console = make_console()
    console.print(level_table(analysis))
    if spaces:
        console.print(space_table(analysis))
    if analysis.axes.opaque:
        console.print(opaque_table(analysis))
    say(console, *analysis_notes(analysis), *(f"written: {path}" for path in out or []))
