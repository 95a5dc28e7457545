"""What is freed goes back to the system, and nothing that is in use does."""

import sys
from pathlib import Path

import pytest
import torch

from fxfuse.memory import give_back


def held() -> int:
    """Pages of this process in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the kernel of Linux")
def test_many_small_tensors_leave_nothing_behind() -> None:
    kept = torch.ones(1 << 16)
    many = [torch.ones(1 << 12) for _ in range(4000)]
    last = torch.ones(1 << 12)  # what lies at the heap's end keeps the library from returning the rest by itself
    full = held()
    del many
    give_back()
    assert held() < full - 8000  # of some 16,000 pages
    assert float(kept.sum() + last.sum()) == (1 << 16) + (1 << 12)
