"""Copies of functions that hold parts of a network.

``copy.deepcopy`` takes functions as they are. A module that keeps ``self.f = lambda x: a.c(a.b(x))`` then has a copy
that goes on computing with the layers of the original. Here such a function gets a twin with cells and defaults of its
own, before the network is copied; after the copy, what they held is looked up in its ``memo``:

    ``held(twin) = memo[held(original)]`` where the copy has made one; everything else stays the very object it was.
"""

import copy
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

_PLAIN = (list, tuple, set, dict)
_DEPTH = 4
"""Containers in containers, as far as functions and layers are looked for."""


def twins_of_functions(root: nn.Module, memo: dict[int, Any]) -> Callable[[], None]:
    """Enter twins of all functions that ``root``'s modules keep as attributes in ``memo``. Call what is returned when
    ``root`` has been copied with that ``memo``: it fills the twins."""
    made: dict[int, tuple[types.FunctionType, types.FunctionType]] = {}
    stack = [value for part in root.modules() for value in part.__dict__.values()]
    while stack:
        for function in _functions(stack.pop()):
            if id(function) not in made and (function.__closure__ or function.__defaults__ or function.__kwdefaults__):
                made[id(function)] = (function, _twin(function))
                memo[id(function)] = made[id(function)][1]
                stack.extend(_held(function))

    def fill() -> None:
        for function, twin in made.values():
            for old, new in zip(function.__closure__ or (), twin.__closure__ or (), strict=True):
                if _filled(old):
                    new.cell_contents = _moved(old.cell_contents, memo)
            twin.__defaults__ = _moved(function.__defaults__, memo)
            twin.__kwdefaults__ = _moved(function.__kwdefaults__, memo)

    return fill


def _functions(value: Any, depth: int = _DEPTH) -> Iterator[types.FunctionType]:
    """The functions in plain containers, in partial applications, and ``value`` itself if it is one."""
    if isinstance(value, types.FunctionType):
        yield value
    elif isinstance(value, functools.partial):
        yield from _functions([value.func, *value.args, *value.keywords.values()], depth)
    elif isinstance(value, _PLAIN) and depth:
        for item in _items(value):
            yield from _functions(item, depth - 1)


def _held(function: types.FunctionType) -> list[Any]:
    cells = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
    return [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]


def _twin(function: types.FunctionType) -> types.FunctionType:
    cells = tuple(types.CellType() for _ in function.__closure__ or ())
    twin = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, cells)
    twin.__dict__.update(function.__dict__)
    twin.__qualname__, twin.__annotations__ = function.__qualname__, function.__annotations__
    twin.__module__, twin.__doc__ = function.__module__, function.__doc__
    return twin


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a name that was never bound
        return False


def _moved(value: Any, memo: dict[int, Any]) -> Any:
    """``value`` with what has been copied replaced by its copy."""
    if id(value) in memo:
        return memo[id(value)]
    if type(value) in _PLAIN and _copied(value, memo):
        if isinstance(value, dict):
            return {key: _moved(item, memo) for key, item in value.items()}
        return type(value)(_moved(item, memo) for item in value)
    if isinstance(value, functools.partial) or (isinstance(value, types.MethodType) and id(value.__self__) in memo):
        return copy.deepcopy(value, memo)
    return value


def _items(value: Any) -> list[Any]:
    return list(value.values() if isinstance(value, dict) else value)


def _copied(value: Any, memo: dict[int, Any], depth: int = _DEPTH) -> bool:
    """Whether something in ``value`` has been copied."""
    if isinstance(value, nn.Module | Tensor | types.FunctionType):
        return id(value) in memo
    return isinstance(value, _PLAIN) and depth > 0 and any(_copied(item, memo, depth - 1) for item in _items(value))
