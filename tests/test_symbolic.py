"""What tracing leaves behind in torch: nothing."""

import subprocess
import sys

LEFT_BEHIND = """
import gc, weakref, torch
from fxfuse.passes.trace import trace

program = trace(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)), torch.randn(2, 4))
gone = weakref.ref(program.module)
del program
gc.collect()
assert gone() is None, "the first traced network is kept for ever"
assert torch.overrides.is_tensor_method_or_property(torch.Tensor.expand), "torch's list of methods holds a wrapper"
"""


def test_nothing_keeps_a_traced_network():
    """In a process of its own: torch lists its functions once."""
    subprocess.run([sys.executable, "-c", LEFT_BEHIND], check=True)
