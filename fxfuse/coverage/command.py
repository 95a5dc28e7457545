"""``fxfuse coverage``: run the matrix, or a part of it, and write its page."""

from pathlib import Path
from typing import Annotated

import typer


def coverage_command(
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="DIR", help="Where the records lie; finished ones are kept.")
    ] = "fxfuse-coverage",
    page: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the page there, and .json beside it. Default: in --out.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A model, or a pattern such as 'resnet*'; repeat.")
    ] = None,
    family: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="The beginning of a family's name: timm; repeat.")
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Only the small models that stand for their family.")] = False,
    laws: Annotated[
        bool, typer.Option("--laws", help="Only the columns about the analysis; a later run does the rest.")
    ] = False,
    again: Annotated[
        str, typer.Option(help="Finished rows to run anew: none, failed, other (those of other code), all.")
    ] = "none",
    seconds: Annotated[float, typer.Option(min=1, help="Time limit of one model.")] = 900.0,
    gigabytes: Annotated[float, typer.Option(min=0.1, help="Memory limit of one model (Linux).")] = 12.0,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Models side by side.")] = 1,
) -> None:
    """Run fxfuse over many architectures and write which laws hold: the coverage matrix.

    An interrupted run goes on where it was. timm and transformers are needed for their rows only.

    Examples:

    `fxfuse coverage --fast`

    `fxfuse coverage --only 'resnet*' --only vit_b_16 --out matrix`
    """
    from fxfuse.console import make_console, say
    from fxfuse.coverage.catalogue import catalogue, choose, missing
    from fxfuse.coverage.checks import COLUMNS, LAWS
    from fxfuse.coverage.driver import Limits, run_rows
    from fxfuse.coverage.table import counts, kept, write_page
    from fxfuse.errors import MethodError

    if again not in ("none", "failed", "other", "all"):
        raise MethodError(f"again must be none, failed, other or all. Got {again!r}")
    console = make_console()
    notes = [f"{package} is not installed: its rows are left out." for package in missing().values()]
    rows = choose(only or (), family or (), fast)
    folder = Path(out)
    limits = Limits(seconds, gigabytes, jobs, LAWS if laws else tuple(COLUMNS))
    records = run_rows(rows, folder / "rows", limits, again=again, say=lambda line: say(console, line))
    target = folder / "coverage.md" if page is None else Path(page)
    there, left = kept(folder / "rows", list(catalogue()))
    if left:
        notes.append(f"Not run for this page: {', '.join(left)}.")
    write_page(there, target, notes)
    summary = [
        f"{name}: {green} of {every} green, laws hold for {hold}"
        for name, (green, hold, every) in counts(list(records.values())).items()
    ]
    say(console, *summary, f"written: {target}")
