"""``fxfuse fuse``: a recipe, options, or both, and the run."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fxfuse.commands.shared import InterruptedRunError, Quiet, shown_progress
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
    recipe: Annotated[str | None, typer.Argument(help="A recipe, recipe.yaml; options win over its entries.")] = None,
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
            help="A weight file: .safetensors, or a state dict of torch.save. Repeat in the order of the parents; with "
            "one --parent and several --weights all are weights of that source.",
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="A few hundred inputs, labels not needed: an image folder, .npz, .npy, .safetensors, "
            "torchvision:MNIST, module:factory; or a mapping as in a recipe, "
            "'{source: images, limit: 400, preprocessing: {mean: 0.5}}'. Beside a recipe a source alone is read and "
            "preprocessed as the recipe says of its own data.",
        ),
    ] = None,
    evaluation: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Data for the comparison, best with labels. Default: the calibration data."),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="How to fuse, see `fxfuse methods`. Default: hungarian-gradient.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="The fused architecture: a factor on the first parent's widths, 1.5, or a source, whose weights do "
            "not matter. Default: the first parent's."
        ),
    ] = None,
    importance: Annotated[
        str | None,
        typer.Option(
            help="How neurons are weighed against each other: uniform, conductance, gradient-activation, deeplift, "
            "feature-ablation, fisher, magnitude or norm-product. Default: the method's own."
        ),
    ] = None,
    statistics: Annotated[
        str | None,
        typer.Option(help="What neurons are compared by: activations or weights. Default: the method's own."),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the method: metric=cosine; repeat.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE[=FILE]",
            help="The model that all parents were trained from, for task-arithmetic and ties; with =FILE its weights.",
        ),
    ] = None,
    granularity: Annotated[
        str | None, typer.Option(help="Where levels end: block, layer, how many there are, or names: a,b,c.")
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(help="What the output is fitted to: the parents' mean probabilities or logits, or labels."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Fuse as few levels (partial-neurons: neurons) as this allows: 1.5 (times one network), '1.5x flops', "
            "'200000 parameters'."
        ),
    ] = None,
    router: Annotated[str | None, typer.Option(help="How method select chooses: confidence, distance or gate.")] = None,
    share: Annotated[
        list[float] | None,
        typer.Option(metavar="NUMBER", help="A parent's share, relative to the others'; repeat in their order."),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASSES",
            help="A parent's classes in the order of its outputs: cat,dog or 0-4,7; repeat in the parents' order. The "
            "fused network knows them all.",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the fit per level.")] = None,
    joint_steps: Annotated[int | None, typer.Option(help="Steps of fitting all levels together; 0: none.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of the fit.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples per step; fewer need less memory.")] = None,
    max_seconds: Annotated[
        float | None, typer.Option(help="Time limit of each level's fit, and of the joint fit.")
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="Where the joint fit begins: auto, or fused: never with a parent's weights.")
    ] = None,
    repair: Annotated[
        str | None, typer.Option(help="norms: recompute batch-norm statistics; rescale: layers without a norm too.")
    ] = None,
    augment: Annotated[
        str | None, typer.Option(help="How inputs are transformed in the fit: auto, none, or names of shift,flip,mix.")
    ] = None,
    finetune: Annotated[
        int | None,
        typer.Option(metavar="EPOCHS", help="Then train end to end for so long, and the best parent beside it."),
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:1.")] = None,
    seed: Annotated[int | None, typer.Option(help="Default: 0. The same seed gives the same bits.")] = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="DIR", help="The output folder, here or in the recipe.")
    ] = None,
    onnx: Annotated[bool | None, typer.Option("--onnx/--no-onnx", help="Write model.onnx too, and check it.")] = None,
    leaf: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A module (path or class name) to keep whole; repeat.")
    ] = None,
    submodule: Annotated[
        str | None, typer.Option(help="Fuse this module of the parents only; it is given the samples.")
    ] = None,
    front_end: Annotated[str | None, typer.Option(help="What makes the graph: auto, fx or export.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier result, or an interrupted run.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on behind the last finished level.")] = False,
    quiet: Quiet = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON, and progress as JSON lines on standard error.")
    ] = False,
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
