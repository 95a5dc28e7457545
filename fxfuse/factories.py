"""User code by name: ``package.module:factory`` and ``path/to/file.py:factory``, with literal arguments.

A reference is *place* ``:`` *name* and, if wanted, a call: ``zoo/net.py:build(width=32)``. Arguments are read by
``ast.literal_eval``, so that a reference can hold numbers, strings, lists and the like but no code. Whatever goes
wrong is raised as the error class that the caller names, in a sentence that starts with the caller's subject.
"""

import ast
import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from fxfuse.errors import FuseError, nearest
from fxfuse.recipe import split_source

# Files that user files import from beside themselves: module name -> folder. Two parents' folders may each hold a
# `layers.py`; the second folder's must not be answered with the first's.
_beside: dict[str, Path] = {}


@dataclass(frozen=True, slots=True)
class Made:
    """What a factory made, and the file whose code made it (``None`` for built-in code)."""

    value: Any
    file: Path | None
    factory: str


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference to user code; ``subject`` starts every error message and ``error`` is its class."""

    text: str
    subject: str
    error: type[FuseError]

    def make(self, args: Mapping[str, Any] | None = None) -> Made:
        """Import the place, find the name, and call it; a module, tensor or other ready object is taken as it is.

        ``args`` are added to the keyword arguments in the reference itself.
        """
        place, call, name = split_source(self.text)
        if not name:
            raise self.error(f"{self.subject}: {self.text!r} is not of the form 'module:factory' or 'file.py:factory'.")
        positional, keywords = self.arguments(args)
        is_file = place.endswith(".py")
        folder = Path(place).expanduser().resolve().parent if is_file else Path.cwd()
        with _importable(folder):
            module = self._file_module(Path(place).expanduser()) if is_file else self._module(place)
            target = self._attribute(module, place, name)
            is_factory = isinstance(target, type | functools.partial) or inspect.isroutine(target) or call or args
            value = self.call(target, name, positional, keywords) if is_factory else target
        return Made(value, _file_of(target, module), name)

    def arguments(self, args: Mapping[str, Any] | None = None) -> tuple[list[Any], dict[str, Any]]:
        """The literals in the reference's call, positional and by keyword, and ``args`` added to the latter."""
        call, args = split_source(self.text)[1], dict(args or {})
        try:
            node = ast.parse(f"f{call or '()'}", mode="eval").body
            if not isinstance(node, ast.Call) or any(keyword.arg is None for keyword in node.keywords):
                raise ValueError
            positional = [ast.literal_eval(arg) for arg in node.args]
            keywords = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
        except (ValueError, SyntaxError, TypeError):
            message = f"{self.subject}: the arguments {call} must be literals such as (10, width=32, mode='a')."
            raise self.error(message) from None
        for key in keywords.keys() & args.keys():
            raise self.error(f"{self.subject}: the argument {key!r} is in both the source and `args`.")
        return positional, {**keywords, **args}

    def _file_module(self, path: Path) -> ModuleType:
        if not path.is_file():
            raise self.error(f"{self.subject}: there is no file {path}{beside(path)}")
        path = path.resolve()
        # One module per file and content: files of equal name in two folders stay apart.
        digest = hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:12]
        name = f"_fxfuse_{path.stem}_{digest}"
        if name in sys.modules:
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise self.error(f"{self.subject}: {path} is not Python source.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:  # the user's file; a script may end with sys.exit()
            del sys.modules[name]
            raise self._raised(f"{path} cannot be imported", error, path) from error
        return module

    def _module(self, name: str) -> ModuleType:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if name != missing and not name.startswith(f"{missing}."):
                raise self._raised(f"module {name!r} cannot be imported", error, None) from error
            hint = _modules_like(name)
            raise self.error(f"{self.subject}: there is no module {missing!r}{hint}") from None
        except (Exception, SystemExit) as error:  # the user's code, too
            raise self._raised(f"module {name!r} cannot be imported", error, None) from error

    def _attribute(self, module: ModuleType, place: str, name: str) -> Any:
        target: Any = module
        for part in name.split("."):
            if not hasattr(target, part):
                public = [n for n, v in vars(target).items() if _is_own(v, target) and not n.startswith("_")]
                raise self.error(f"{self.subject}: {place} has no {name!r}; {nearest(part, public)}")
            target = getattr(target, part)
        return target

    def call(self, target: Any, name: str, positional: list[Any], keywords: dict[str, Any]) -> Any:
        """Call ``target``; its errors come back as this reference's, with the line that raised them."""
        if not callable(target):
            raise self.error(f"{self.subject}: {name!r} is a {type(target).__name__} and takes no arguments.")
        try:
            inspect.signature(target).bind(*positional, **keywords)
        except TypeError as error:
            signature = inspect.signature(target)
            raise self.error(f"{self.subject}: {name}{signature} cannot be called so: {error}.") from None
        except ValueError:
            pass  # built-in code may have no signature
        try:
            return target(*positional, **keywords)
        except FuseError:
            raise
        except (Exception, SystemExit) as error:  # the user's code, too
            raise self._raised(f"{name}() failed", error, _file_of(target, None)) from error

    def _raised(self, what: str, error: BaseException, file: Path | None) -> FuseError:
        where = f" at {place}" if (place := line_of(error, file)) else ""
        return self.error(f"{self.subject}: {what}: {type(error).__name__}: {_one_line(error)}{where}.")


def _is_own(value: Any, owner: Any) -> bool:
    """Whether a callable was written in the module ``owner`` and not imported into it."""
    return callable(value) and (not inspect.ismodule(owner) or getattr(value, "__module__", None) == owner.__name__)


def line_of(error: BaseException, file: Path | None = None) -> str:
    """``file.py:12``: the innermost line of ``file`` that led to the error, or the innermost of all."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    own = [frame for frame in frames if file is not None and Path(frame.filename) == file]
    others = [frame for frame in frames if Path(frame.filename) != Path(__file__)]
    chosen = own or others
    return f"{chosen[-1].filename}:{chosen[-1].lineno}" if chosen else ""


def beside(path: Path) -> str:
    """A hint for a file that is not there: the nearest name in its folder, or the nearest folder that exists."""
    if not path.parent.is_dir():
        return f", nor a folder {path.parent}."
    names = [entry.name for entry in path.parent.iterdir()]
    hint, question, _ = nearest(path.name, names).partition("? Known")
    return f"; {hint}?" if question else "."


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let code import what lies beside it, without answering with another folder's module of the same name."""
    for name, home in list(_beside.items()):
        top = name.partition(".")[0]
        if home != folder and ((folder / f"{top}.py").exists() or (folder / top).is_dir()):
            sys.modules.pop(name, None)
            del _beside[name]
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            top = name.partition(".")[0]
            if file and Path(file) in _own_files(folder, top, Path(file)):
                _beside[name] = folder


def _own_files(folder: Path, top: str, file: Path) -> Iterable[Path]:
    """``file`` itself if it is the module ``top`` of ``folder`` or lies inside the package of that name."""
    return [file] if file == folder / f"{top}.py" or (folder / top) in file.parents else []


def _file_of(target: Any, module: ModuleType | None) -> Path | None:
    """The Python file in which a factory is written."""
    unwrapped = inspect.unwrap(target) if callable(target) else target
    for candidate in (unwrapped, type(target), module):
        try:
            if candidate is not None and (file := inspect.getsourcefile(candidate)) and Path(file).is_file():
                return Path(file)
        except TypeError:
            continue
    return None


def _modules_like(name: str) -> str:
    """The module that the user may have meant, among the siblings of the one that is missing."""
    parent, _, leaf = name.rpartition(".")
    if not parent:
        names = set(sys.stdlib_module_names) | {info.name for info in pkgutil.iter_modules()}
    else:
        try:
            names = {info.name for info in pkgutil.iter_modules(importlib.import_module(parent).__path__)}
        except (ImportError, AttributeError):
            return "."
    hint, question, _ = nearest(leaf, names).partition("? Known")
    return f"; {hint}?" if question else "."


def _one_line(error: BaseException, limit: int = 300) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
