"""Many runs of one recipe, method after method and seed after seed; what is done already is kept."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from fxfuse.comparison import cell
from fxfuse.errors import MethodError, OutputError, nearest
from fxfuse.loading import load_inputs
from fxfuse.methods import options_of
from fxfuse.output import difference, write_atomically
from fxfuse.presets import find_method
from fxfuse.progress import QuietProgress
from fxfuse.recipe import Recipe


def run_all(
    recipe: Recipe, methods: Sequence[str], seeds: Sequence[int], folder: Path, say: Callable[[str], None]
) -> list[cell.Run]:
    """All runs, each in a process of its own, with their state under ``folder``.

    A run that is done is read; one that was interrupted goes on, one that failed is tried again. Raises a ``FuseError``
    where parents or data cannot be used whatever the method, or the folder is another comparison's, and
    ``KeyboardInterrupt`` with the run under way kept.
    """
    check_options(recipe.options, methods)
    load_inputs(recipe, QuietProgress())  # what no method can do without is told once, and at once
    claim(folder, recipe)
    runs = []
    for seed in seeds:
        for method in methods:
            run = cell.read(folder, method, seed)
            if run is None or not run.rows:  # what failed may be mended by now
                run = cell.execute(one_run(recipe, method, seed), folder)
            runs.append(run)
            say(_sentence(run))
    return runs


def one_run(recipe: Recipe, method: str, seed: int) -> Recipe:
    """The recipe of one run. A base model, a router and options stay with the methods that use them; others refuse."""
    preset = find_method(method)
    taken = options_of(preset)
    options = {key: value for key, value in recipe.options.items() if key in taken}
    changes = {"method": method, "seed": seed, "onnx": False, "options": options}
    unused = {"base": not preset.needs_base, "router": preset.form != "select"}
    return recipe.model_copy(update={**changes, **{key: None for key, drop in unused.items() if drop}})


def check_options(options: Iterable[str], methods: Sequence[str]) -> None:
    """Raise ``MethodError`` for an option that none of the methods takes."""
    known = {key for method in methods for key in options_of(find_method(method))}
    for key in options:
        if key not in known:
            hint = nearest(key, known) if known else "they have none"
            raise MethodError(f"none of the methods compared has the option {key!r}: {hint}")


def _sentence(run: cell.Run) -> str:
    figure = run.one_shot.get("accuracy")
    said = run.reason or (f"{100 * figure:.2f} %" if figure is not None else "done")
    took = "resumed" if run.wall is None else f"{run.wall:.0f} s"
    return f"{run.method}, seed {run.seed}: {said} ({took})"


def claim(folder: Path, recipe: Recipe) -> None:
    """Note whose runs lie in a folder. Raises ``OutputError`` where they are another recipe's, or a file is there."""
    same = {"method", "seed", "output", "onnx"}
    identity: dict[str, Any] = recipe.model_dump(mode="json", exclude=same)
    mark = folder / "compare.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        earlier = json.loads(mark.read_text(encoding="utf-8")) if mark.exists() else None
        if earlier is None and any(folder.iterdir()):
            raise OutputError(f"The folder {folder} is not empty and holds no comparison; choose another.")
        write_atomically(mark, json.dumps(identity, indent=1).encode()) if earlier is None else None
    except OSError as error:
        raise OutputError(f"The folder {folder} cannot be used: {error.strerror or error}; choose another.") from None
    except ValueError:
        raise OutputError(f"{mark} is damaged; choose another folder.") from None
    if earlier is not None and earlier != identity:
        raise OutputError(
            f"The runs in {folder} are of another recipe ({difference(earlier, identity)}); choose another folder."
        )
