"""The command line: a thin layer over ``run``, ``inspect`` and the other edges.

Every ``FuseError`` becomes one line ``error: ...`` on standard error and exit status 2, an interruption status 130 and
a line that says how to go on; an error that nobody foresaw becomes one line too, with its place. Results go to standard
output, progress and notes to standard error. Everything heavy is imported by the command that needs it, so that help is
there at once.
"""

import shlex
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from fxfuse.commands.compare import compare_command
from fxfuse.commands.fuse import fuse_command
from fxfuse.commands.inspect import inspect_command
from fxfuse.commands.results import eval_command, export_command
from fxfuse.commands.shared import InterruptedRunError
from fxfuse.commands.tour import demo_command, methods_command
from fxfuse.coverage.command import coverage_command
from fxfuse.errors import FuseError

# typer brings its own copy of click in some versions; this is the root of its errors in all of them
ClickError: type[Exception] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="fxfuse",
    help="Fuse several trained networks of one architecture into one network.",
    epilog="Start with `fxfuse demo`. Each command has its own --help, with examples.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in given
    arguments = [word for word in given if word != "--debug"]
    try:
        status = typer.main.get_command(app).main(arguments, prog_name="fxfuse", standalone_mode=False)
    except FuseError as error:
        if debug:
            raise
        return _fail(" ".join(str(error).split()))
    except InterruptedRunError as stop:
        resume = [word for word in arguments if word not in ("--overwrite", "--resume")]
        again = shlex.join(["fxfuse", *resume, "--resume"])
        how = f"go on from the last finished level with: {again}" if stop.args[0] else "nothing was kept"
        return _fail(f"interrupted; {how}", 130, "")
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130, "")
    except ClickError as error:
        return _fail(_usage(error))
    except Exception as error:  # nothing that was foreseen: a mistake in fxfuse, or memory that ran out
        if debug:
            raise
        return _fail(_unforeseen(error))
    if status == 130:  # newer versions of typer turn Ctrl-C into this
        return _fail("interrupted", 130, "")
    return status if isinstance(status, int) else 0


def _fail(message: str, status: int = 2, prefix: str = "error: ") -> int:
    print(f"{prefix}{message}", file=sys.stderr)
    return status


def _unforeseen(error: Exception) -> str:
    """An error that nobody turned into a sentence, in one line that says what to do about it."""
    kind = type(error).__name__
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error):
        return (
            "memory ran out: give fewer or smaller samples, a smaller --batch-size, or --device cpu; docs/guide.md "
            "says what else there is (memory runs out)."
        )
    from fxfuse.factories import line_of

    words = " ".join(str(error).split())[:300]
    return (
        f"{kind} at {line_of(error)}: {words}. This was not foreseen: it may be a mistake in fxfuse; "
        "--debug shows the traceback, which a report should have."
    )


def _usage(error: Any) -> str:
    """A mistake on the command line in one line."""
    text = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    return text if context is None else f"{text.rstrip('.')}. See: {context.command_path} --help"


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    del debug  # taken off by main, so that it may stand anywhere
    if version:
        from importlib import metadata

        print(f"fxfuse {metadata.version('fxfuse')}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


app.command("fuse", epilog="See docs/ and `fxfuse methods` for what the methods do.")(fuse_command)
app.command("inspect")(inspect_command)
app.command("compare")(compare_command)
app.command("coverage")(coverage_command)
app.command("export")(export_command)
app.command("eval")(eval_command)
app.command("methods")(methods_command)
app.command("demo")(demo_command)


if __name__ == "__main__":
    sys.exit(main())
