"""All rows of the matrix, and the choice of some of them.

timm and transformers are extras: where one is missing its rows are left out, with a word.
"""

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from importlib.util import find_spec

from fxfuse.coverage import of_timm, of_torch, of_torchvision, of_transformers
from fxfuse.coverage.entry import Entry
from fxfuse.errors import SourceError, nearest

_SOURCES: dict[str, tuple[str | None, Callable[[], Iterator[Entry]]]] = {
    "torch": (None, of_torch.entries),
    "torchvision": (None, of_torchvision.entries),
    "timm": ("timm", of_timm.entries),
    "transformers": ("transformers", of_transformers.entries),
}


def catalogue() -> dict[str, Entry]:
    """Every row by its name, whether its package is installed or not. A name of two libraries gets its library's."""
    found: dict[str, Entry] = {}
    for source, (_, entries) in _SOURCES.items():
        for entry in entries():
            name = entry.name if entry.name not in found else f"{source}:{entry.name}"
            found[name] = entry
    return found


def missing() -> dict[str, str]:
    """Packages that are not installed, by the family whose rows are left out."""
    return {source: package for source, (package, _) in _SOURCES.items() if package and find_spec(package) is None}


def choose(only: Sequence[str] = (), families: Sequence[str] = (), fast: bool = False) -> dict[str, Entry]:
    """The rows whose name fits one of ``only`` (shell patterns) and whose family begins with one of ``families``,
    in the order of the patterns.

    Raises ``SourceError`` where a word fits nothing.
    """
    every = catalogue()
    absent = missing()
    rows = {name: entry for name, entry in every.items() if entry.family not in absent}
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for name in rows):
            raise SourceError(f"no model of the matrix is called {pattern!r}; {nearest(pattern, rows)}")
    known = sorted({entry.family for entry in rows.values()})
    for family in families:
        if not any(name.startswith(family) for name in known):
            raise SourceError(f"the matrix has no family {family!r}; {nearest(family, known)}")
    ordered = list(dict.fromkeys(name for pattern in only or ["*"] for name in rows if fnmatchcase(name, pattern)))
    return {
        name: rows[name]
        for name in ordered
        if (not families or any(rows[name].family.startswith(family) for family in families))
        and (not fast or rows[name].fast)
    }
