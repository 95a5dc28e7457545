"""What several commands have in common: options, how progress is shown, and an interruption."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fxfuse.progress import Progress

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
DeviceName = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:1.", metavar="DEVICE")]


class InterruptedRunError(Exception):
    """Ctrl-C in a run; the argument says whether something was kept to go on with."""


def shown_progress(quiet: bool, as_json: bool) -> "Progress":
    """Progress as the options want it."""
    from fxfuse.progress import make_progress

    return make_progress("quiet" if quiet else "json" if as_json else "auto")
