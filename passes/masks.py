"""Indices that are truths, while a network is traced by torch.fx.

``x[m]`` holds as many numbers as ``m`` holds truths, and no graph can say how many if that depends on the data. Two
cases need no such number:

- ``m`` is a constant: its truths are at fixed places, ``x[:, m] == x[:, m.nonzero()]``, and these places are recorded;
- ``x[m] = f(y[m], z[m], ..)`` with one mask, where ``f`` works number by number and is finite wherever its operands
  are (sums, differences, products): what is written at the truths is ``where(m, f(y, z, ..), x)``, whatever they are.

Everything else asks for the selection itself and fails as it does without this file.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from fxfuse.passes.graphs import words
from fxfuse.passes.normalizing.aliases import mutated
from fxfuse.passes.probing import PROBE

Constants = Callable[[fx.Node], tuple[Tensor | None, Tensor | None]]


def _truths(value: Any) -> bool:
    """Whether ``value`` is a tensor of truths, proxied or not."""
    held = value.node.meta[PROBE][0] if isinstance(value, fx.Proxy) else value
    return isinstance(held, Tensor) and held.dtype == torch.bool and held.dim() > 0


def has_mask(index: Any) -> bool:
    """Whether an index holds tensors of truths."""
    return any(_truths(item) for item in (index if isinstance(index, tuple) else (index,)))


def placed(index: Any, constants: Constants) -> Any:
    """``index`` with the places of the truths instead of each mask; ``index`` itself if one of them is no constant.

    ``constants`` gives the value of a node at both batch sizes, where it does not depend on the data.
    """
    items: list[Any] = []
    for item in index if isinstance(index, tuple) else (index,):
        mask = _constant(item, constants) if _truths(item) else None
        if mask is None and _truths(item):
            return index
        items.extend([item] if mask is None else mask.nonzero(as_tuple=True))
    return tuple(items)


def _constant(mask: Any, constants: Constants) -> Tensor | None:
    """The value of a mask that depends on neither the data nor the batch size."""
    if not isinstance(mask, fx.Proxy):
        return mask  # type: ignore[no-any-return]
    first, second = constants(mask.node)
    return first if first is not None and second is not None and torch.equal(first, second) else None


class Selection:
    """``source[mask]`` that is not recorded before something is done with it that needs it.

    ``read()`` records it. Sums, differences and products with numbers and with other selections by the same mask stay
    selections.
    """

    def __init__(self, source: Any, mask: Any, read: Callable[[], Any]) -> None:
        self.source, self.mask, self.read = source, mask, read
        self.known = len(source.tracer.graph.nodes)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.read(), name)

    def __getitem__(self, index: Any) -> Any:
        return self.read()[index]

    @classmethod
    def __torch_function__(cls, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Any function of torch: it gets what was selected."""
        args, kwargs = (
            torch.utils._pytree.tree_map(lambda a: a.read() if isinstance(a, Selection) else a, item)
            for item in (args, kwargs or {})
        )
        return function(*args, **kwargs)

    def at(self, mask: Any) -> bool:
        """Whether ``mask`` is the one of this selection, and source and mask are still what they were."""
        nodes = list(self.source.tracer.graph.nodes)
        return _same(self.mask, mask) and not any(mutated(node) is not None for node in nodes[self.known :])

    def filled(self, target: Any) -> Any:
        """``target`` with this selection's numbers at the truths of its mask."""
        mask = self.mask
        for _ in range(target.dim() - mask.dim()):
            mask = mask.unsqueeze(-1)
        return torch.where(mask, self.source, target)


def _same(one: Any, other: Any) -> bool:
    """Whether two masks are one, or are made alike of the same values."""
    if not (isinstance(one, fx.Proxy) and isinstance(other, fx.Proxy)):
        return one is other
    a, b = one.node, other.node
    return a is b or (
        a.op.startswith("call") and (a.op, a.target, a.args, a.kwargs) == (b.op, b.target, b.args, b.kwargs)
    )


def _finite(name: str) -> Callable[..., Any]:
    function = getattr(operator, name.strip("_"), None) or getattr(operator, name.strip("_")[1:])
    flipped = name.startswith("__r")

    def apply(self: Selection, *others: Any) -> Any:
        alike = [o.source if isinstance(o, Selection) and o.at(self.mask) else o for o in others]
        if (
            not self.at(self.mask)
            or any(not isinstance(o, Selection | int | float) for o in others)
            or (any(isinstance(o, Selection) for o in alike))
        ):
            return function(self.read(), *[o.read() if isinstance(o, Selection) else o for o in others])
        operands = [self.source, *alike]
        made = function(*reversed(operands)) if flipped else function(*operands)
        return Selection(made, self.mask, lambda: made[self.mask])

    return apply


for _name in words("add sub mul neg radd rsub rmul"):
    setattr(Selection, f"__{_name}__", _finite(f"__{_name}__"))
for _name in words("add sub mul"):
    setattr(Selection, f"__i{_name}__", _finite(f"__{_name}__"))
