"""Memory that is not used any more goes back to the system.

The C library keeps what is freed for later; after a stage that held gigabytes of products that may be as much again as
all that is in use, and other programs and the files that weights lie in have to do without it.
"""

import contextlib
import ctypes


def give_back() -> None:
    """Return what the C library keeps (where it is GNU's); a few milliseconds."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
