"""``fxfuse fuse``: a recipe, options, or both, and the run."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fxfuse.commands.shared import InterruptedRunError, Json, Quiet, shown_progress
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
    from fxfuse.recipe import Recipe


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
    max_seconds: Annotated[
        float | None, typer.Option(help="Time limit of each level's fit, and of the joint fit.")
    ] = None,
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
    from fxfuse.output import kept
    from fxfuse.run import run

    try:
        with shown_progress(quiet, as_json) as progress:
            outcome = run(recipe, overwrite=overwrite, resume=resume, progress=progress)
    except KeyboardInterrupt:
        raise InterruptedRunError(kept(recipe.output)) from None
    if as_json:
        print(json.dumps(run_json(outcome)))
    elif not quiet:
        show_run(make_console(), outcome)
