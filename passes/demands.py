"""Checks of the data in the user's code, while a network is traced by torch.fx.

``assert lengths.max() <= n`` and ``if (x < 0).any(): raise ..`` ask for values that no trace has, and compute nothing.
A network that gave an answer has passed its checks; so does the traced one. What a test has to be is read off the
source: true in an assertion, false before a ``raise`` alone, the opposite behind every ``not``. A test of which parts
have to be true and others false is left alone.
"""

import ast
import functools
import linecache
from typing import Any

from fxfuse.errors import TraceError


def demanded(file: str, line: int) -> bool | None:
    """The truth that a test at a line of a source file must have for the code to go on; ``None`` if it is no check."""
    found = {truth for first, last, truth in _checks(file) if first <= line <= last}
    return found.pop() if len(found) == 1 else None


@functools.lru_cache(maxsize=256)
def _checks(file: str) -> tuple[tuple[int, int, bool | None], ...]:
    """First and last line of every check's test in a file, and the truth that all its parts must have."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return ()
    found: list[tuple[ast.expr, bool | None]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            found.append((node.test, True))
        elif isinstance(node, ast.If) and all(isinstance(part, ast.Raise) for part in node.body):
            found.append((node.test, False))
        elif isinstance(node, ast.If | ast.While | ast.IfExp):  # one more test that may share the line
            found.append((node.test, None))
    return tuple((test.lineno, test.end_lineno or test.lineno, _all_parts(test, truth)) for test, truth in found)


def _all_parts(test: ast.expr, truth: bool | None) -> bool | None:
    decides = (ast.IfExp, ast.Lambda, ast.NamedExpr)
    if truth is None or any(isinstance(part, decides) or getattr(part, "ifs", None) for part in ast.walk(test)):
        return None
    truths = set(_parts(test, truth))
    return truths.pop() if len(truths) == 1 else None


def _parts(test: ast.expr, truth: bool) -> list[bool]:
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return _parts(test.operand, not truth)
    if isinstance(test, ast.BoolOp):
        return [found for part in test.values for found in _parts(part, truth)]
    return [truth]


class Unknown:
    """A value that depends on the data, in a check: whatever is asked of it, it is as the check wants it."""

    def __init__(self, truth: bool) -> None:
        self.truth = truth

    def __bool__(self) -> bool:
        return self.truth

    def __hash__(self) -> int:
        return id(self)

    def _none(self) -> Any:
        raise TraceError("the code asks for a number that depends on the values of the input")

    __int__ = __float__ = __index__ = _none

    def _same(self, *_: Any, **__: Any) -> "Unknown":
        return self

    item = tolist = __lt__ = __le__ = __gt__ = __ge__ = __add__ = __radd__ = __sub__ = __rsub__ = _same
    __mul__ = __rmul__ = __truediv__ = __floordiv__ = __mod__ = __neg__ = __abs__ = _same
    __eq__ = __ne__ = _same  # type: ignore[assignment]  # as tensors', they give no truth yet
