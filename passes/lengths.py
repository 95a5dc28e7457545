"""``len(x)`` of a tensor while a network is traced.

Python insists that ``len`` returns a number, and for the batch there is none: its size stays free. So ``len`` itself is
stood in for while the user's code runs: it asks the tensor for the size of its first dimension, which both front ends
record as they do ``x.shape[0]``. Everything that is not a traced tensor is measured as ever.
"""

import builtins
import contextlib
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def traced_lengths(size: Callable[[Any], Any]) -> Iterator[None]:
    """Within the block ``len(x)`` is ``size(x)``, or Python's own answer where that returns ``None``."""
    original = builtins.len

    def length(x: Any, /) -> Any:
        found = size(x)
        return original(x) if found is None else found

    builtins.len = length
    try:
        yield
    finally:
        builtins.len = original
