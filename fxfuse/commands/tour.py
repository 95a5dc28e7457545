"""``fxfuse methods`` and ``fxfuse demo``: what there is, and what it looks like."""

import json
from typing import Annotated

import typer

from fxfuse.commands.shared import Json, Quiet


def methods_command(as_json: Json = False) -> None:
    """List the methods, each with a line on what it does."""
    from fxfuse.console import make_console, methods_json, methods_table

    if as_json:
        print(json.dumps(methods_json()))
    else:
        make_console().print(methods_table())


def demo_command(
    out: Annotated[str, typer.Option("--out", "-o", metavar="DIR", help="Where to write.")] = "fxfuse-demo",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the training and of the fusion.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Train three small networks on handwritten digits, fuse them, and compare. Takes less than a minute.

    Example: `fxfuse demo`
    """
    from fxfuse.demo import demo

    demo(out, seed, quiet=quiet)
