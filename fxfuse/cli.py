"""The command line: a thin layer over ``run``, ``inspect`` and the other edges.

Every ``FuseError`` becomes one line ``error: ...`` on standard error and exit status 2, an interruption status 130 and
a line that says how to go on. Results go to standard output, progress and notes to standard error. Everything heavy is
imported by the command that needs it, so that help is there at once.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fxfuse.comparison.command import compare_command
from fxfuse.coverage.command import coverage_command
from fxfuse.errors import FuseError
from fxfuse.options import (
    budget_of,
    data_of,
    granularity_of,
    options_of,
    parent_of,
    parents_of,
    recipe_of,
    target_of,
)

if TYPE_CHECKING:
    from fxfuse.inputs import Example
    from fxfuse.progress import Progress
    from fxfuse.recipe import Recipe
    from fxfuse.types import Analysis

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

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output; progress as JSON lines.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
DeviceName = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:1.", metavar="DEVICE")]


class _InterruptedError(Exception):
    """Ctrl-C in a run; the argument says how to go on."""


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
    except _InterruptedError as stop:
        resume = [word for word in arguments if word not in ("--overwrite", "--resume")]
        again = shlex.join(["fxfuse", *resume, "--resume"])
        how = f"go on from the last finished level with: {again}" if stop.args[0] else "nothing was kept"
        return _fail(f"interrupted; {how}", 130, "")
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130, "")
    except ClickError as error:
        return _fail(_usage(error))
    if status == 130:  # newer versions of typer turn Ctrl-C into this
        return _fail("interrupted", 130, "")
    return status if isinstance(status, int) else 0


def _fail(message: str, status: int = 2, prefix: str = "error: ") -> int:
    print(f"{prefix}{message}", file=sys.stderr)
    return status


def _usage(error: Any) -> str:
    """A mistake on the command line in one line."""
    text = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    return text if context is None else f"{text} See: {context.command_path} --help"


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


# ------------------------------------------------------------------------------------------------------------ fuse


@app.command("fuse", epilog="See docs/ and `fxfuse methods` for what the methods do.")
def fuse_command(
    recipe: Annotated[str | None, typer.Argument(help="A recipe.yaml; options given besides it win.")] = None,
    parent: Annotated[
        list[str] | None,
        typer.Option(
            "--parent",
            "-p",
            metavar="SOURCE[=FILE]",
            help="A parent: module:factory, net.py:factory(width=32), torchvision:resnet18 or a .pt2 program; "
            "with =FILE also its weights. Repeat for each parent.",
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            "--weights",
            "-w",
            metavar="FILE",
            help="A weight file, .safetensors or torch.load's (weights only); repeat in the order of the parents. With "
            "one --parent and several --weights, they all are weights of that source.",
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="A few hundred inputs: an image folder, .npz, .npy, .safetensors, torchvision:MNIST, module:factory; "
            "or a mapping as in a recipe, '{source: images, limit: 400}'.",
        ),
    ] = None,
    evaluation: Annotated[
        str | None, typer.Option(metavar="DATA", help="Data for the comparison; best with labels.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="See `fxfuse methods`.")] = None,
    target: Annotated[
        str | None, typer.Option(help="The fused architecture: a source, or a factor on the first parent's widths.")
    ] = None,
    importance: Annotated[str | None, typer.Option(help="How neurons are weighed against each other.")] = None,
    statistics: Annotated[str | None, typer.Option(help="Compare neurons by activations or by weights.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the method: metric=cosine; repeat.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="SOURCE[=FILE]", help="The model that all parents were trained from (ties)."),
    ] = None,
    granularity: Annotated[str | None, typer.Option(help="block, layer, a number, or node names: a,b,c.")] = None,
    head: Annotated[str | None, typer.Option(help="probabilities, logits or labels.")] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Fuse as few levels as this allows: 1.5 (times one network), '1.5x flops', '200000 parameters'."
        ),
    ] = None,
    router: Annotated[str | None, typer.Option(help="Of method select: confidence, distance or gate.")] = None,
    share: Annotated[list[float] | None, typer.Option(help="A parent's share; repeat in their order.")] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASSES",
            help="A parent's classes in the order of its outputs: cat,dog or 0-4,7; repeat in the parents' order. The "
            "fused network knows them all.",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the fit per level.")] = None,
    joint_steps: Annotated[int | None, typer.Option(help="Steps of fitting all levels together.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of the fit.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Batch size of the fit.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Time limit of the fit per level.")] = None,
    start: Annotated[str | None, typer.Option(help="auto, or fused: never begin with a parent's weights.")] = None,
    repair: Annotated[str | None, typer.Option(help="norms, or rescale: layers without a norm too.")] = None,
    augment: Annotated[str | None, typer.Option(help="auto, none, or names: shift,flip.")] = None,
    finetune: Annotated[int | None, typer.Option(metavar="EPOCHS", help="Then train end to end.")] = None,
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:1.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same bits.")] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", metavar="DIR", help="The output folder.")] = None,
    onnx: Annotated[bool | None, typer.Option("--onnx/--no-onnx", help="Write model.onnx too.")] = None,
    leaf: Annotated[list[str] | None, typer.Option(help="A module (path or class) to keep whole; repeat.")] = None,
    submodule: Annotated[str | None, typer.Option(help="Fuse this module of the parents only.")] = None,
    front_end: Annotated[str | None, typer.Option(help="auto, fx or export.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Fuse trained networks into one and write it, with its account, into a folder.

    Examples:

    `fxfuse fuse recipe.yaml`

    `fxfuse fuse -p net.py:build -w a.safetensors -w b.safetensors --calibration images/ --out fused`

    `fxfuse fuse recipe.yaml --method hungarian-linear --seed 1 --out again --onnx`
    """
    options: dict[str, Any] = {
        "parents": parents_of(parent or [], weights or [], share or [], labels or []),
        "calibration": data_of(calibration),
        "evaluation": data_of(evaluation),
        "method": method,
        "target": target_of(target),
        "importance": importance,
        "statistics": statistics,
        "options": options_of(option or []),
        "base": None if base is None else parent_of(base),
        "granularity": None if granularity is None else granularity_of(granularity),
        "head": head,
        "budget": budget_of(budget),
        "router": router,
        "fit": {
            "steps": steps,
            "joint_steps": joint_steps,
            "lr": lr,
            "batch_size": batch_size,
            "max_seconds": max_seconds,
            "start": start,
            "repair": repair,
            "augment": augment if augment in (None, "auto", "none") else augment.split(","),
        },
        "finetune": {"epochs": finetune},
        "device": device,
        "seed": seed,
        "output": out,
        "onnx": onnx,
        "leaves": leaf or None,
        "submodule": submodule,
        "front_end": front_end,
    }
    _fuse(recipe_of(recipe, options), overwrite, resume, quiet, as_json)


def _fuse(recipe: "Recipe", overwrite: bool, resume: bool, quiet: bool, as_json: bool) -> None:
    from fxfuse.console import make_console, run_json, show_run
    from fxfuse.run import run

    try:
        with _progress(quiet, as_json) as progress:
            outcome = run(recipe, overwrite=overwrite, resume=resume, progress=progress)
    except KeyboardInterrupt:
        state = Path(f"{recipe.output}.partial") / "state"
        raise _InterruptedError(any(state.glob("*.safetensors"))) from None
    if as_json:
        print(json.dumps(run_json(outcome)))
    elif not quiet:
        show_run(make_console(), outcome)


def _progress(quiet: bool, as_json: bool) -> "Progress":
    from fxfuse.progress import make_progress

    return make_progress("quiet" if quiet else "json" if as_json else "auto")


# --------------------------------------------------------------------------------------------------------- inspect


@app.command("inspect")
def inspect_command(
    source: Annotated[str, typer.Argument(help="module:factory, net.py:factory, torchvision:resnet18 or a .pt2.")],
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
    granularity: Annotated[str, typer.Option(help="block, layer, a number, or node names: a,b,c.")] = "block",
    out: Annotated[
        list[str] | None,
        typer.Option("--out", "-o", metavar="FILE", help="Write it: .json .graphml .dot .svg .mmd ...; repeat."),
    ] = None,
    spaces: Annotated[bool, typer.Option("--spaces", help="Print the neuron spaces too.")] = False,
    leaf: Annotated[list[str] | None, typer.Option(help="A module (path or class) to keep whole; repeat.")] = None,
    submodule: Annotated[str | None, typer.Option(help="Look at this module of the network only.")] = None,
    front_end: Annotated[str, typer.Option(help="auto, fx or export.")] = "auto",
    as_json: Json = False,
) -> None:
    """Trace a network, find its neurons, cut it into levels, and print them.

    Examples:

    `fxfuse inspect torchvision:resnet18 --input 1,3,224,224 --out resnet18.svg`

    `fxfuse inspect net.py:build --weights a.safetensors --granularity layer --json`
    """
    from fxfuse.console import make_console, say
    from fxfuse.dumps import level_table, opaque_table, space_table, write_partition
    from fxfuse.inputs import example_of, guess
    from fxfuse.partition_record import summarise, to_json
    from fxfuse.pipeline import analyse
    from fxfuse.recipe import ParentSpec, Recipe, parent_name
    from fxfuse.sources import load_parent

    spec = ParentSpec(source=source, weights=weights)
    settings = Recipe(parents=(spec,), granularity=granularity_of(granularity), front_end=front_end)  # type: ignore[arg-type]  # checked by the record
    parent = load_parent(spec)
    name = parent_name(spec)
    example: Example
    if inputs:
        example = example_of(inputs)
    else:
        tensor, stated = guess(parent.module, f"parent {name!r}")
        example = (tensor,)
        print(f"note: no --input given; guessed --input {stated}, which the network takes", file=sys.stderr)
    analysis = analyse(
        parent.module,
        example,
        name=name,
        granularity=settings.granularity,
        leaves=leaf or (),
        submodule=submodule,
        front_end=settings.front_end,
    )
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
    say(console, *_inspect_notes(analysis), *(f"written: {path}" for path in out or []))


def _inspect_notes(analysis: "Analysis") -> list[str]:
    front = {"fx": "torch.fx", "export": "torch.export"}[analysis.program.front_end]
    spaces = f"{len(analysis.axes.spaces)} neuron spaces"
    notes = (*analysis.program.notes, *analysis.partition.notes)
    return [f"traced by {front}; {spaces}", *(f"note: {note}" for note in notes)]


app.command("compare")(compare_command)
app.command("coverage")(coverage_command)

# ---------------------------------------------------------------------------------------------- export, eval, methods


@app.command("export")
def export_command(
    result: Annotated[str, typer.Argument(help="An output folder of `fxfuse fuse`.")],
    onnx: Annotated[str, typer.Option("--onnx", metavar="FILE", help="The ONNX file to write.")],
    as_json: Json = False,
) -> None:
    """Write a fused network as ONNX with a free batch size, checked in onnxruntime at batch 1, 3 and 17.

    Example: `fxfuse export fused --onnx fused.onnx`
    """
    from fxfuse.console import make_console, onnx_json, onnx_sentence, say
    from fxfuse.run import export

    report = export(result, onnx)
    if as_json:
        print(json.dumps(onnx_json(report)))
    else:
        say(make_console(), f"written: {report.path}", onnx_sentence(report))


@app.command("eval")
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
    """Measure a fused network on data.

    Example: `fxfuse eval fused --data test.npz`
    """
    import dataclasses

    from fxfuse.console import make_console, score_table
    from fxfuse.recipe import DataSpec
    from fxfuse.run import evaluate

    given = data_of(data)
    score, description = evaluate(result, DataSpec(**given) if isinstance(given, dict) else given, device)
    if as_json:
        print(json.dumps({**dataclasses.asdict(score), "data": description}))
    else:
        make_console().print(score_table(score, f"on {description}"))


@app.command("methods")
def methods_command(as_json: Json = False) -> None:
    """List the methods, each with a line on what it does."""
    from fxfuse.presets import DEFAULT, METHODS

    if as_json:
        rows = [{"method": name, "summary": m.summary, "needs_data": m.needs_data} for name, m in METHODS.items()]
        print(json.dumps(rows))
        return
    from rich.table import Table

    from fxfuse.console import make_console

    table = Table(header_style="bold")
    for column in ("method", "needs data", "what it does"):
        table.add_column(column)
    for name, preset in METHODS.items():
        shown = f"{name} (default)" if name == DEFAULT else name
        table.add_row(shown, "yes" if preset.needs_data else "no", preset.summary)
    make_console().print(table)


@app.command("demo")
def demo_command(
    out: Annotated[str, typer.Option("--out", "-o", metavar="DIR", help="Where to write.")] = "fxfuse-demo",
    seed: Annotated[int, typer.Option(help="Seed of the training and of the fusion.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Train three small networks on handwritten digits, fuse them, and compare. Takes less than a minute.

    Example: `fxfuse demo`
    """
    from fxfuse.demo import demo

    demo(out, seed, quiet=quiet)


if __name__ == "__main__":
    sys.exit(main())
