"""The torch.export front end."""

from torch import nn

from fxfuse.errors import TraceError
from fxfuse.passes.binding import Bound
from fxfuse.passes.graphs import CanonicalModule


def export_trace(module: nn.Module, bound: Bound) -> CanonicalModule:
    raise TraceError("not yet")
