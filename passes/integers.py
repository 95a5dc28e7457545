"""``int(x)`` of a number that depends on the batch, while a network is traced.

Python insists that ``int`` returns a number, and for the batch there is none: its size stays free. The first windowed
transformers wrote ``B = int(windows.shape[0] / (H * W / size / size))``. So while such a network is traced the name
``int`` is stood in for, in the files that its classes and the functions around them come from. The stand-in is asked
about a traced number; for all else, and as a type, it is ``int``. With sizes ``n >= 0``

    ``int(n / a / b) = n // (a b)``  for a whole ``a b > 0``.
"""

import contextlib
import operator
import sys
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any

from torch import fx, nn

from fxfuse.passes.probing import PROBE


@contextlib.contextmanager
def traced_integers(
    root: nn.Module, answer: Callable[[Any], Any], is_user_file: Callable[[str], bool]
) -> Iterator[None]:
    """Within the block ``int(x)`` is ``answer(x)`` in the user's files, or Python's own where that returns ``None``."""

    class Kind(type):
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            found = answer(args[0]) if len(args) == 1 and not kwargs else None
            return int(*args, **kwargs) if found is None else found

        def __instancecheck__(cls, value: Any) -> bool:
            return isinstance(value, int)

        def __subclasscheck__(cls, other: type) -> bool:
            return issubclass(other, int)

        def __eq__(cls, other: object) -> bool:
            return other is int or other is cls

        def __hash__(cls) -> int:
            return hash(int)

    stand_in = Kind("int", (int,), {})
    files = [vars(module) for module in _modules(root, is_user_file) if "int" not in vars(module)]
    for names in files:
        names["int"] = stand_in
    try:
        yield
    finally:
        for names in files:
            del names["int"]


def _modules(root: nn.Module, is_user_file: Callable[[str], bool]) -> list[ModuleType]:
    """The user's files in which the classes of a network stand, and those of the functions that these name."""
    names = dict.fromkeys(cls.__module__ for part in root.modules() for cls in type(part).__mro__)
    for name in list(names):
        if _file(name, is_user_file):
            held = vars(sys.modules[name]).values()
            names.update(dict.fromkeys(value.__module__ for value in held if isinstance(value, FunctionType)))
    return [sys.modules[name] for name in names if _file(name, is_user_file)]


def _file(name: str, is_user_file: Callable[[str], bool]) -> bool:
    path = getattr(sys.modules.get(name), "__file__", None)
    return isinstance(path, str) and is_user_file(path)


def whole_quotient(node: fx.Node) -> tuple[fx.Node, int] | None:
    """``(n, d)`` if the value of ``node`` is a whole number ``n`` divided by constants whose product ``d`` is whole."""
    divisor = 1.0
    while node.op == "call_function" and node.target is operator.truediv and isinstance(node.args[0], fx.Node):
        by = node.args[1]
        values = by.meta[PROBE] if isinstance(by, fx.Node) else (by, by)
        if values[0] != values[1] or not isinstance(values[0], int | float):
            return None
        divisor *= values[0]
        node = node.args[0]
    whole = type(node.meta[PROBE][0]) is int and divisor > 0 and divisor == int(divisor)
    return (node, int(divisor)) if whole else None
