"""``isinstance(x, Tensor)`` while a network is traced.

What stands for a tensor is none: torch's own code in C would take a proxy that says otherwise for one, and read its
memory. So only ``isinstance`` itself, as Python code calls it, is stood in for while the user's code runs. Everything
that is not a traced tensor is told apart as ever.
"""

import builtins
import contextlib
from collections.abc import Callable, Iterator
from types import UnionType
from typing import Any

from torch import Tensor


@contextlib.contextmanager
def traced_kinds(is_tensor: Callable[[Any], bool]) -> Iterator[None]:
    """Within the block ``isinstance(x, Tensor)`` holds where ``is_tensor(x)`` does, and where it does anyway."""
    original = builtins.isinstance

    def told(x: Any, kind: Any, /) -> bool:
        return original(x, kind) or (_asks_for_tensors(kind) and is_tensor(x))

    def _asks_for_tensors(kind: Any) -> bool:
        kinds = kind if type(kind) is tuple else kind.__args__ if type(kind) is UnionType else (kind,)
        return any(one is Tensor for one in kinds)

    builtins.isinstance = told
    try:
        yield
    finally:
        builtins.isinstance = original
