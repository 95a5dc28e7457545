"""Attributes of modules that ``forward`` sets, while a network is traced.

``self.mean = self.mean.to(x.device)`` puts a proxy where a tensor was. The rest of ``forward`` has to read the proxy,
and the graph, once it is made, the tensor: so within the block an attribute may be set to anything, buffers included,
and after it every module holds what it held before.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

CONSTANT = "_tensor_constant"
"""How the names begin under which torch.fx keeps constants that it met, on the root: the graph reads them."""


@contextlib.contextmanager
def attributes_restored(root: nn.Module, is_traced: Callable[[Any], bool]) -> Iterator[None]:
    """Let the code set attributes, and undo it. What ``is_traced`` says may stand in the place of a buffer."""
    before = [(module, dict(module.__dict__), dict(module._buffers)) for module in root.modules()]
    known = {id(module) for module, _, _ in before}
    original = nn.Module.__setattr__

    def assign(self: nn.Module, name: str, value: Any) -> None:
        if name in self._buffers and is_traced(value) and id(self) in known:
            self.__dict__[name] = value  # it is found before the buffer is
        else:
            original(self, name, value)

    nn.Module.__setattr__ = assign  # type: ignore[method-assign]  # for the time of the block
    try:
        yield
    finally:
        nn.Module.__setattr__ = original  # type: ignore[method-assign]
        for module, attributes, buffers in before:
            attributes.update({name: value for name, value in vars(module).items() if name.startswith(CONSTANT)})
            module.__dict__.clear()
            module.__dict__.update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)
