"""Small modules made of a ``forward``, traced and normalized, and what their graphs hold."""

import pytest
from torch import nn

from fxfuse.models_zoo import randomise
from fxfuse.passes.trace import trace

BOTH = pytest.mark.parametrize("front_end", ["fx", "export"])


def traced(forward, *example, front_end="fx", state=None):
    """A program of a module with this ``forward`` and these parameters."""

    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            for name, value in (state or {}).items():
                setattr(self, name, value)

    Module.forward = forward
    model = randomise(Module(), seed=1).eval()
    module = trace(model, example, front_end=front_end).module
    return model, module


def targets(module):
    return [n.target for n in module.graph.nodes if n.op in {"call_function", "call_method"}]


def kinds(module):
    return [type(module.get_submodule(str(n.target))) for n in module.graph.nodes if n.op == "call_module"]
