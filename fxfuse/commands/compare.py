"""``fxfuse compare``: run a recipe with many methods and seeds, and write one table."""

from pathlib import Path
from typing import Annotated

import typer

from fxfuse.commands.shared import Quiet


def compare_command(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe; its method, seed and output do not matter.")
    ],
    methods: Annotated[str, typer.Option(help="Names with commas: ot,hungarian-linear. Default: every method.")] = "",
    seeds: Annotated[str, typer.Option(help="Numbers with commas: 0,1,2.")] = "0",
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="DIR", help="Where the runs lie; finished ones are kept.")
    ] = "fxfuse-compare",
    quiet: Quiet = False,
) -> None:
    """Run one recipe with many methods and seeds, one process each, and write one table.

    An interrupted comparison goes on where it was. A method that cannot run has its reason in the table; exit status 2
    if none could.

    Example: `fxfuse compare recipe.yaml --methods average,ot,hungarian-gradient --seeds 0,1,2 --out compared`
    """
    from fxfuse.comparison.driver import run_all
    from fxfuse.comparison.table import summary, write
    from fxfuse.console import make_console, plain_table, say
    from fxfuse.options import methods_of, seeds_of
    from fxfuse.recipe import load_recipe, resolve

    console, folder = make_console(), Path(out).absolute()
    wanted, numbers = methods_of(methods), seeds_of(seeds)
    given = resolve(load_recipe(recipe), Path.cwd())
    runs = run_all(given, wanted, numbers, folder, lambda line: None if quiet else say(console, line))
    written = write(runs, folder, f"Methods compared on {Path(recipe).name}")
    if not quiet:
        head, rows = summary(runs)
        console.print(plain_table(head, [(_shown(name), *row) for name, *row in rows]))
        say(console, f"written: {', '.join(str(path) for path in written)}")
    if not any(run.rows for run in runs):
        raise typer.Exit(2)


def _shown(name: str) -> str:
    """A row's name on a terminal; the page marks names of methods as code."""
    return f"fused, {name.strip('`')}" if name.startswith("`") else name
