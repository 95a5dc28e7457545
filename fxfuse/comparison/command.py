"""``fxfuse compare``: run a recipe with many methods and seeds, and write one table."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fxfuse.recipe import Recipe


def compare_command(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe; its method and seed do not matter.")],
    methods: Annotated[str, typer.Option(help="Names: hungarian,kmeans. Default: every method.")] = "",
    seeds: Annotated[str, typer.Option(help="Numbers: 0,1,2.")] = "0",
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="DIR", help="Where the runs lie; what is done there is kept.")
    ] = "fxfuse-compare",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
) -> None:
    """Run one recipe with many methods and seeds, one process each, and write one table.

    An interrupted comparison goes on where it was. A method that cannot run has its reason in the table.

    Example: `fxfuse compare recipe.yaml --methods average,ot,hungarian-gradient --seeds 0,1,2 --out compared`
    """
    from rich.table import Table

    from fxfuse.comparison.cell import execute, read
    from fxfuse.comparison.table import summary, write
    from fxfuse.console import make_console, say
    from fxfuse.errors import RecipeError
    from fxfuse.presets import METHODS, find_method
    from fxfuse.recipe import load_recipe, resolve

    names = [name.strip() for name in methods.split(",") if name.strip()] or list(METHODS)
    for name in names:
        find_method(name)
    if not all(seed.strip().isdigit() for seed in seeds.split(",")):
        raise RecipeError(f"--seeds must be numbers with commas between them: 0,1,2. Got {seeds!r}.")
    numbers = list(dict.fromkeys(int(seed) for seed in seeds.split(",")))
    given = resolve(load_recipe(recipe), Path.cwd())
    folder = Path(out).absolute()
    _claim(folder, given)
    console, runs = make_console(), []
    for number in numbers:
        for name in dict.fromkeys(names):
            run = read(folder, name, number)
            if run is None or not run.rows:  # what failed may be mended by now
                run = execute(given.model_copy(update={"method": name, "seed": number, "onnx": False}), folder)
            runs.append(run)
            if not quiet:
                figure = run.one_shot.get("accuracy")
                said = run.reason or (f"{100 * figure:.2f} %" if figure is not None else "done")
                took = "resumed" if run.wall is None else f"{run.wall:.0f} s"
                say(console, f"{name}, seed {number}: {said} ({took})")
    written = write(runs, folder, f"Methods compared on {Path(recipe).name}")
    if quiet:
        return
    head, rows = summary(runs)
    table = Table(*head, header_style="bold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    say(console, f"written: {', '.join(str(path) for path in written)}")


def _claim(folder: Path, recipe: "Recipe") -> None:
    """Note whose runs lie in a folder. Raises ``OutputError`` where they are another recipe's, or a file is there."""
    import json

    from fxfuse.errors import OutputError
    from fxfuse.output import difference, write_atomically

    same = {"method", "seed", "output", "onnx"}
    identity: dict[str, Any] = recipe.model_dump(mode="json", exclude=same)
    mark = folder / "compare.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        earlier = json.loads(mark.read_text(encoding="utf-8")) if mark.exists() else None
        if earlier is None and any(folder.iterdir()):
            raise OutputError(f"The folder {folder} is not empty and holds no comparison; choose another.")
        write_atomically(mark, json.dumps(identity, indent=1).encode()) if earlier is None else None
    except (OSError, ValueError) as error:
        raise OutputError(f"The folder {folder} cannot be used: {error}; choose another.") from None
    if earlier is not None and earlier != identity:
        raise OutputError(
            f"The runs in {folder} are of another recipe ({difference(earlier, identity)}); choose another folder."
        )
