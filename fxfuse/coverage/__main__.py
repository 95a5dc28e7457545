"""``python -m fxfuse.coverage`` is ``fxfuse coverage``."""

import sys

import typer

from fxfuse.coverage.command import coverage_command
from fxfuse.errors import FuseError

if __name__ == "__main__":
    try:
        typer.run(coverage_command)
    except FuseError as error:
        sys.exit(f"error: {error}")
