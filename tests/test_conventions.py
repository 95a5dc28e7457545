"""Conventions that no linter knows: floors, public names, docstrings, the size of files, help texts, links."""

import ast
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import typer.main

import fxfuse
from fxfuse.cli import app
from fxfuse.presets import DEFAULT, METHODS

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"fxfuse": ROOT / "fxfuse", "fxfuse.passes": ROOT / "passes", "fxfuse.models_zoo": ROOT / "models_zoo"}
LONGEST = 550
"""Lines of a file; a few hundred are better."""


def module_files() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found: dict[str, Path] = {}
    for package, folder in FOLDERS.items():
        for file in sorted(folder.rglob("*.py")):  # links are not followed
            parts = file.relative_to(folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = file
    return found


MODULES = module_files()
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in MODULES.items()}


def test_public_names_are_pinned() -> None:
    assert fxfuse.__all__ == [
        "METHODS",
        "Analysis",
        "FinetuneSettings",
        "FitSettings",
        "FuseError",
        "FuseResult",
        "Grouping",
        "Level",
        "Partition",
        "Program",
        "Space",
        "analyse",
        "axes",
        "axis_rule",
        "calibrate",
        "correspond",
        "fuse",
        "group",
        "partition",
        "rewrite",
        "trace",
    ]
    for name in fxfuse.__all__:
        assert getattr(fxfuse, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        fxfuse.nonsense  # noqa: B018  # reading it is the test


def test_methods_are_pinned() -> None:
    assert list(METHODS) == [
        "average",
        "lerp",
        "average-linear",
        "task-arithmetic",
        "ties",
        "kl",
        "ot",
        "ot-sinkhorn",
        "ot-weights",
        "rebasin",
        "rebasin-weights",
        "zip",
        "transplant",
        "transplant-read",
        "hungarian",
        "kmeans",
        "hungarian-read",
        "kmeans-read",
        "zip-read",
        "hungarian-linear",
        "kmeans-linear",
        "hungarian-gradient",
        "kmeans-gradient",
        "partial",
        "partial-neurons",
        "ensemble",
        "select",
    ]
    assert DEFAULT in METHODS


def test_the_version_is_stated_once_and_the_same() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert fxfuse.__version__ == project["version"] == metadata.version("fxfuse")


def imports(tree: ast.Module) -> set[str]:
    """What a module imports when it is imported or run, without what only type checkers read."""
    for_types = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    skipped = {id(inner) for node in for_types for inner in ast.walk(node)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            found.add(str(node.module))
    return found


@pytest.mark.parametrize("name", MODULES)
def test_imports_are_absolute_and_under_one_name(name: str) -> None:
    assert not {i for i in imports(TREES[name]) if i.split(".")[0] in ("passes", "models_zoo")}


def test_nothing_imports_the_command_line_and_the_zoo_imports_nothing() -> None:
    for name, tree in TREES.items():
        own = {i for i in imports(tree) if i.split(".")[0] == "fxfuse"}
        assert name == "fxfuse.__main__" or "fxfuse.cli" not in own, name
        if name.startswith("fxfuse.models_zoo"):
            assert all(i.startswith("fxfuse.models_zoo") for i in own), name


def test_floors_list_every_module() -> None:
    """The contracts are checked by ``lint-imports``; here, that no module has slipped past them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    for contract in contracts[:2]:
        (container,) = contract["containers"]
        listed = {word for layer in contract["layers"] for word in re.findall(r"\w+", layer)}
        depth = container.count(".") + 1
        inside = {n.split(".")[depth] for n in MODULES if n.startswith(f"{container}.")}
        assert listed == inside, container


def public_definitions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


@pytest.mark.parametrize("name", MODULES)
def test_modules_and_public_definitions_have_docstrings(name: str) -> None:
    tree = TREES[name]
    assert ast.get_docstring(tree), f"{name} has no docstring"
    for node in public_definitions(tree):
        assert ast.get_docstring(node), f"{name}.{node.name} has no docstring"


@pytest.mark.parametrize("name", MODULES)
def test_files_can_be_read_at_one_sitting(name: str) -> None:
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) <= LONGEST


@pytest.mark.parametrize(("link", "goal"), [("passes", "../passes"), ("models_zoo", "../models_zoo")])
def test_links_are_in_place_and_tracked(link: str, goal: str) -> None:
    path = ROOT / "fxfuse" / link
    assert path.is_symlink()
    assert path.readlink() == Path(goal)
    if (ROOT / ".git").exists():
        entry = subprocess.run(
            ["git", "ls-files", "-s", f"fxfuse/{link}"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        assert entry.startswith("120000 "), f"fxfuse/{link} must be tracked as a symbolic link"


def test_every_command_and_option_has_help() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group
    for name, command in commands.items():
        assert command.help, name
        for parameter in command.params:
            assert parameter.help, f"{name} {parameter.opts}"  # arguments have one too


def test_the_repository_speaks_of_the_project_alone() -> None:
    """No absolute path of a developer's machine in what is shipped."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *MODULES.values()]
    for file in pages:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w.])/(work|home|root|tmp)/", text), file


def test_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"fxfuse": "fxfuse.cli:main"}
    (found,) = metadata.entry_points(group="console_scripts", name="fxfuse")
    assert found.value == "fxfuse.cli:main"
