"""Solvers run on one thread: thousands of operations on small tensors, each far too short to share.

With several threads every one of them ends in a barrier at which the idle threads spin. On a machine that has anything
else to do this takes ten times the processor time, and more wall time too.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread inside, as many as before afterwards. Also a decorator: ``@one_thread()``."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
