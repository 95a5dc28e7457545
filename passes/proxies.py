"""Proxies that know their values at two batch sizes, for the torch.fx front end.

A proxy stands for a value while the user's code runs. It carries a probe (:mod:`fxfuse.passes.probing`) and answers
what Python asks from it where the answer is the same at both batch sizes and does not depend on the data. All else is
recorded. What a proxy cannot know itself it asks of its tracer (:class:`fxfuse.passes.symbolic.ValueTracer`):
``create_proxy``, ``create_arg``, ``concrete(proxy)`` and ``constants(node)``.
"""

import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
from torch import Tensor, fx

from fxfuse.errors import TraceError
from fxfuse.passes.masks import Selection, has_mask, placed
from fxfuse.passes.probing import PROBE


class Shape(tuple[Any, ...]):
    """A tensor's sizes as a tuple of proxies: it unpacks, slices and adds as ``torch.Size`` does."""

    def numel(self) -> Any:
        """The product of the sizes."""
        return functools.reduce(operator.mul, self, 1)


class Method:
    """A bound method of a proxied value, called at most once per mention."""

    def __init__(self, owner: "ValueProxy", name: str) -> None:
        self.owner, self.name = owner, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Record the call."""
        return self.owner.call(self.name, args, kwargs)


class ValueProxy(fx.Proxy):
    """A proxy that answers Python's questions from its probe where the answer cannot change."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_is_param":  # it stands for a tensor, and is no parameter to register
            raise AttributeError(name)
        value = self.node.meta[PROBE][0]
        if isinstance(value, Tensor):
            if name == "shape":
                return self.call("size", (), {})
            if name == "data" or (name == "real" and not value.is_complex()):
                return self
        result = getattr(value, name)
        if isinstance(result, bool) or name == "ndim":
            return result
        if callable(result):
            return Method(self, name)
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A method call; sizes and ranks come back as Python sees them."""
        value = self.node.meta[PROBE][0]
        if isinstance(value, Tensor):
            if name == "size" and not args and not kwargs:
                return Shape(self.call("size", (i,), {}) for i in range(value.dim()))
            if name == "type" and not args and not kwargs:  # the name of its type, which ``type`` takes as a type too
                return self.dtype
            if name in {"dim", "ndimension"}:
                return value.dim()
            if name in {"is_floating_point", "is_contiguous", "is_complex"}:
                return getattr(value, name)()
            if name in {"item", "tolist"}:
                known = self.concrete()
                return getattr(known, name)()
        return self.tracer.create_proxy("call_method", name, (self, *args), kwargs)

    def concrete(self) -> Any:
        """The value as a Python object, if it is the same whatever the data and the batch size."""
        return cast(Any, self.tracer).concrete(self)

    def __bool__(self) -> bool:
        return bool(self.concrete())

    def __int__(self) -> int:
        return int(self.concrete())

    def __float__(self) -> float:
        return float(self.concrete())

    def __index__(self) -> int:
        return operator.index(self.concrete())

    def __round__(self, digits: int | None = None) -> Any:
        return round(self.concrete(), digits) if digits is not None else round(self.concrete())

    __array_priority__ = 1000  # numpy's numbers leave arithmetic to proxies, as they do to tensors

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """``numpy.sqrt(x.shape[1])`` and the like, of what is known."""
        return np.array(self.concrete(), dtype=dtype)

    def __len__(self) -> int:
        lengths = [len(value) for value in self.node.meta[PROBE]]
        if lengths[0] != lengths[1]:
            raise TraceError("the code asks for the number of samples in the batch, which must stay free")
        return lengths[0]

    def __iter__(self) -> Iterator[Any]:
        value = self.node.meta[PROBE][0]
        if isinstance(value, dict):
            return iter(value)
        return iter([operator.getitem(cast(Any, self), i) for i in range(len(self))])

    def keys(self) -> Any:
        """The keys of a mapping."""
        return self.node.meta[PROBE][0].keys()

    def __contains__(self, item: Any) -> bool:
        return item in self.node.meta[PROBE][0]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "data":  # from here on the tensor of this name holds other numbers
            name, value = "node", self.tracer.create_arg(value)
        object.__setattr__(self, name, value)

    def __getitem__(self, index: Any) -> Any:
        def read() -> Any:
            return self.tracer.create_proxy("call_function", operator.getitem, (self, at), {})

        at = placed(index, cast(Any, self.tracer).constants) if has_mask(index) else index
        return Selection(self, index, read) if at is index and has_mask(index) else read()

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(value, Selection):
            index, value = (..., value.filled(self)) if value.at(index) else (index, value.read())
        elif has_mask(index):
            index = placed(index, cast(Any, self.tracer).constants)
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __deepcopy__(self, memo: dict[int, Any]) -> "ValueProxy":
        return self

    def __copy__(self) -> "ValueProxy":
        return self


def _inplace(name: str) -> Callable[[ValueProxy, Any], Any]:
    function = getattr(operator, name)
    pure = getattr(operator, name[1:] if name not in {"iand", "ior"} else f"{name[1:]}_")

    def apply(self: ValueProxy, other: Any) -> Any:
        target = function if isinstance(self.node.meta[PROBE][0], Tensor) else pure
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return apply


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "imatmul"):
    setattr(ValueProxy, f"__{_name}__", _inplace(_name))
