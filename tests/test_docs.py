"""The documentation agrees with the code: its Python runs, its links resolve, its tables have the right rows."""

import inspect
import json
import re
from pathlib import Path

import pytest
import torch
import typer.main
from pydantic_core import PydanticUndefined

import fxfuse
from fxfuse import errors
from fxfuse.cli import app
from fxfuse.passes import calibrate
from fxfuse.passes.fit_linear import RIDGES
from fxfuse.passes.fitting import FitPlan
from fxfuse.passes.importance import IMPORTANCES
from fxfuse.passes.normalize import PASSES
from fxfuse.passes.solvers import SOLVERS
from fxfuse.presets import DEFAULT
from fxfuse.recipe import (
    DataSpec,
    FinetuneSettings,
    FitSettings,
    Limit,
    ParentSpec,
    Preprocessing,
    Recipe,
    TargetSpec,
    parse_recipe,
)
from fxfuse.records import Record

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group

RECORDS: dict[str, type[Record]] = {
    "Recipe": Recipe,
    "Parents": ParentSpec,
    "Target": TargetSpec,
    "Data": DataSpec,
    "Preprocessing": Preprocessing,
    "Limit": Limit,
    "Fit": FitSettings,
    "Finetune": FinetuneSettings,
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def section(page: Path, title: str) -> str:
    """The text under a heading of the second order."""
    parts = re.split(r"^## (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert title in found, f"{page.name} has no section {title!r}"
    return found[title]


def rows(text: str) -> list[list[str]]:
    """The cells of all tables in a text, without their heads."""
    found: list[list[str]] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if cells and set(cells[0]) == {"-"}:  # the rule below a head
            found.pop()
        elif cells:
            found.append(cells)
    return found


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as Markdown renderers make them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_in_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)|<img[^>]+src=\"([^\"]+)\"", page.read_text(encoding="utf-8")):
        link = target[0] or target[1]
        if link.startswith(("http:", "https:")):
            continue
        place, _, anchor = link.partition("#")
        file = page.parent / place if place else page
        assert file.exists(), f"{page.name} links to {link}, which is not there"
        if anchor:
            assert anchor in anchors(file), f"{page.name} links to {link}; {file.name} has {sorted(anchors(file))}"


def test_the_index_names_every_page() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    assert {page.name for page in DOCS.glob("*.md")} - {"index.md"} == set(re.findall(r"\]\((\w+\.md)\)", index))


@pytest.mark.parametrize("title", RECORDS)
def test_every_key_of_a_recipe_is_documented_with_its_default(title: str) -> None:
    fields = RECORDS[title].model_fields
    table = {row[0].strip("`"): row[1] for row in rows(section(DOCS / "recipe.md", title))}
    assert list(table) == list(fields)
    for key, field in fields.items():
        default = field.get_default(call_default_factory=True)
        if default is PydanticUndefined:
            expected = "required"
        elif isinstance(default, Record):
            expected = "record"
        else:
            expected = f"`{json.dumps(default)}`"
        assert table[key] == expected, key


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_recipes_in_a_page_are_recipes(page: Path) -> None:
    for block in blocks(page, "yaml"):
        parse_recipe(block)


def test_every_error_class_has_a_section() -> None:
    classes = [name for name, thing in vars(errors).items() if inspect.isclass(thing) and issubclass(thing, Exception)]
    assert re.findall(r"^## (\w+)$", (DOCS / "errors.md").read_text(encoding="utf-8"), re.MULTILINE) == classes


def test_every_option_of_every_command_is_documented() -> None:
    page = DOCS / "cli.md"
    titles = re.findall(r"^## (\w+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(titles) == sorted(COMMANDS)
    for name, command in COMMANDS.items():
        written = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", section(page, name)))
        options = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
        assert {o for o in options if o.startswith("--")} - {"--help"} <= written, name
        tabled = {o for row in rows(section(page, name)) for o in re.findall(r"`(--[a-z-]+)", row[0])}
        assert tabled <= options, name


def test_help_texts_name_the_choices_and_the_default() -> None:
    said = {parameter.name: parameter.help for parameter in COMMANDS["fuse"].params}
    assert {name for name in IMPORTANCES if name not in said["importance"]} == set()
    assert f"Default: {DEFAULT}." in said["method"]


def test_every_method_solver_and_importance_is_documented() -> None:
    group = (DOCS / "group.md").read_text(encoding="utf-8")
    scores = (DOCS / "calibrate.md").read_text(encoding="utf-8")
    assert {m for m in fxfuse.METHODS if f"`{m}`" not in group} == set()
    assert {s for s in SOLVERS if f"| `{s}` |" not in group} == set()
    assert {i for i in IMPORTANCES if f"| `{i}` |" not in scores} == set()


def test_every_public_name_is_documented() -> None:
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    assert {name for name in fxfuse.__all__ if f"`{name}`" not in text} == set()


def test_every_pass_of_normalisation_is_documented() -> None:
    text = (DOCS / "normalize.md").read_text(encoding="utf-8")
    again = (
        "identities dropped again",
        "dead nodes dropped",
        "dead nodes dropped again",
        "zero initial states dropped",
    )
    assert {name for name, _ in PASSES if f"| {name} |" not in text} <= set(again)


def test_the_signature_of_fuse_is_documented() -> None:
    page = DOCS / "api.md"
    parameters = inspect.signature(fxfuse.fuse).parameters
    tabled = {name for row in rows(section(page, "fuse")) for name in re.findall(r"`(\w+)`", row[0])}
    assert tabled == set(parameters)
    written = " ".join(
        re.findall(r"`fuse\((.*?)\) -> FuseResult`", page.read_text(encoding="utf-8"), re.DOTALL)[0].split()
    )
    defaults = [n if p.default is p.empty else f"{n}={p.default!r}" for n, p in parameters.items()]
    assert written.replace('"', "'") == ", ".join([defaults[0], "*", *defaults[1:]])


@pytest.mark.parametrize(
    ("page", "figure", "phrase"),
    [
        ("calibrate", calibrate.IMPORTANCE_SAMPLES, "At most {} samples, evenly spread"),
        ("decisions", calibrate.IMPORTANCE_SAMPLES, "over at most {} samples"),
        ("calibrate", calibrate.ROWS_PER_SAMPLE, "At most {} positions per sample"),
        ("calibrate", calibrate.SCALE_SAMPLES, "read off the first {} samples"),
        ("fit", FitPlan().steps, "{} steps by default. The held-out error"),
        ("fit", FitPlan().joint_steps, "{} steps by default. A batch is drawn"),
        ("fit", FitPlan().lr, "learning rate {} falling"),
        ("fit", FitPlan().batch_size, "({} samples by default)"),
        ("fit", FitPlan().budget // 2**20, "memory budget ({} MiB)"),
        ("fit", ", ".join(map(str, RIDGES[:3])), "`r` is {} or 1 times"),
    ],
)
def test_figures_in_the_text_are_those_of_the_code(page: str, figure: object, phrase: str) -> None:
    text = " ".join((DOCS / f"{page}.md").read_text(encoding="utf-8").split())
    assert phrase.format(figure) in text, f"{page}.md should say: {phrase.format(figure)}"
