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
from fxfuse.passes.importance import IMPORTANCES
from fxfuse.passes.normalize import PASSES
from fxfuse.passes.solvers import SOLVERS
from fxfuse.recipe import DataSpec, FitSettings, Limit, ParentSpec, Preprocessing, Recipe, TargetSpec, parse_recipe
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


def test_every_method_solver_and_importance_is_documented() -> None:
    group = (DOCS / "group.md").read_text(encoding="utf-8")
    calibrate = (DOCS / "calibrate.md").read_text(encoding="utf-8")
    assert {m for m in fxfuse.METHODS if f"`{m}`" not in group} == set()
    assert {s for s in SOLVERS if f"| `{s}` |" not in group} == set()
    assert {i for i in IMPORTANCES if f"| `{i}` |" not in calibrate} == set()


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
