"""A process that ends with the one that started it, however that one ends.

A child of a fork server is no child of the process that asked for it, so neither a signal to that process nor to its
group needs to reach it; it would run on for as long as its work takes. What does reach it on every platform is the end
of a pipe, or of a process handle, that the other held: whoever waits for that learns of any end, that by SIGKILL too.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

GRACE = 10.0
"""Seconds in which a process that is told to end may remove what it has left on disk."""

ENDED = 143
"""The exit status of a process that was told to end: what a shell makes of SIGTERM."""


def end_with_driver() -> None:
    """End this process (one of ``multiprocessing``'s) with the one that started it. To be called in its main thread."""
    driver = multiprocessing.parent_process()
    if driver is not None:
        _end_after(driver.join)


def end_with_stdin() -> None:
    """End this process when its standard input does: a pipe to the one that started it, which writes nothing there."""
    _end_after(lambda: os.read(sys.stdin.fileno(), 1))  # a buffered read would hold a lock that the exit wants


def _end_after(gone: Callable[[], object]) -> None:
    """When ``gone()`` returns, end by SIGTERM, which unwinds the main thread's stack (not on Windows), or by force.

    It has to be a signal: ``_thread.interrupt_main`` would not wake the main thread from a blocking call.
    """

    def watch() -> None:
        gone()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(ENDED)

    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def _leave(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(ENDED)
