"""The torch.fx front end: symbolic tracing with proxies that know their values at two batch sizes.

Plain symbolic tracing stops wherever Python needs to know something: ``if x.shape[2] % 7``, ``len(x)``, ``range(n)``,
``for t in x``. Here every proxy carries a probe (:mod:`fxfuse.passes.probing`), so that such questions are answered
where the answer is the same at both batch sizes and does not depend on the data; everything else is recorded as usual.
Stateless ``torch.nn`` layers are traced through to their functions, attention and transformers are opened, functions
that their authors hid with ``fx.wrap`` are traced through as well.
"""

import contextlib
import dataclasses
import functools
import operator
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.fx._symbolic_trace as fx_internals
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxfuse.errors import TraceError
from fxfuse.passes.attributes import attributes_restored
from fxfuse.passes.graphs import SCOPE, WHERE, is_torch_leaf, words
from fxfuse.passes.integers import traced_integers, whole_quotient
from fxfuse.passes.lengths import traced_lengths
from fxfuse.passes.masks import Selection, has_mask, placed
from fxfuse.passes.normalizing.constants import constant_value
from fxfuse.passes.openers import OPENERS, functional_attention
from fxfuse.passes.packing import is_padded
from fxfuse.passes.probing import PROBE, Prober

Binding = tuple[tuple[tuple[str, Any], ...], tuple[tuple[str, Any], ...]]
_HERE = Path(__file__).resolve().parent
_NOT_USER = (str(Path(torch.__file__).parent), str(_HERE), str(_HERE.parent / "fxfuse" / "passes"), "<")


def is_user_file(name: str) -> bool:
    """Whether a source file is neither torch's nor ours."""
    return not name.startswith(_NOT_USER)


def user_frame() -> str:
    """``file.py:line`` of the innermost frame that is neither torch's nor ours."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if is_user_file(name):
            return f"{Path(name).name}:{frame.f_lineno}"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return ""


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

    @property  # type: ignore[misc]  # ``isinstance`` asks for it
    def __class__(self) -> type:
        """``Tensor`` where the value is one: code asks ``isinstance(x, Tensor)`` before it computes."""
        value = self.node.meta.get(PROBE, (None,))[0]
        return Tensor if isinstance(value, Tensor) else type(self)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
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
        tracer = self.tracer
        assert isinstance(tracer, ValueTracer)
        return tracer.concrete(self)

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

        at = placed(index, self.tracer.constants) if has_mask(index) else index
        return Selection(self, index, read) if at is index and has_mask(index) else read()

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(value, Selection):
            index, value = (..., value.filled(self)) if value.at(index) else (index, value.read())
        elif has_mask(index):
            index = placed(index, self.tracer.constants)
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


class ValueTracer(fx.Tracer):
    """A tracer whose nodes carry a probe, the user's source line and the user's module path."""

    proxy_buffer_attributes = True

    def __init__(self, prober: Prober, binding: Binding, leaves: Sequence[str] = ()) -> None:
        super().__init__()
        self.prober = prober
        self.binding = binding
        self.leaves = frozenset(leaves)
        self.opened: nn.Module | None = None
        self.asked_for_batch = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """``torch.nn`` layers with state, and what the user named by path or class."""
        if m is self.opened:
            return False
        named = module_qualified_name in self.leaves or type(m).__name__ in self.leaves
        return named or is_torch_leaf(m)

    def create_arg(self, a: Any) -> Any:
        """Proxies are asked for first: they say that they are tensors."""
        return a.node if isinstance(a, fx.Proxy) else super().create_arg(a)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Proxies that know their probe."""
        return ValueProxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """A node with its probe, source line and scope."""
        node = super().create_node(*args, **kwargs)
        node.meta[WHERE] = user_frame()
        node.meta[SCOPE] = self.scope.module_path
        if node.op != "placeholder":
            node.meta[PROBE] = self.prober.node(self.root, node)
        return node

    def create_arg(self, a: Any) -> Any:
        """Numbers of numpy's are Python's."""
        return super().create_arg(a.item() if isinstance(a, np.generic) else a)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Parameters and buffers as nodes, except while a probe is being computed."""
        if self.prober.busy:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Leaves become nodes, composites are opened, everything else is traced through."""
        paths = self.submodule_paths or {}
        if self.prober.busy or m not in paths:
            return forward(*args, **kwargs)
        if isinstance(m, nn.RNNBase) and args and is_padded(args[0]):
            self.opened = m
            try:
                return super().call_module(m, forward, args, kwargs)
            finally:
                self.opened = None
        opener = OPENERS.get(type(m))
        if opener is not None and not self.is_leaf_module(m, paths[m]):
            return super().call_module(m, functools.partial(opener, m), args, kwargs)
        return super().call_module(m, forward, args, kwargs)

    def create_args_for_root(self, *_: Any, **__: Any) -> tuple[Any, list[Any]]:
        """Placeholders for the bound tensors, the bound constants for all other arguments."""
        index = iter(range(len(self.prober.inputs[0])))

        def bind(name: str, value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            proxy = self.create_proxy("placeholder", name, (), {})
            proxy.node.meta[PROBE] = self.prober.placeholder(next(index))
            return proxy

        positional, named = self.binding
        args = [bind(name, value) for name, value in positional]
        kwargs = {name: bind(name, value) for name, value in named}
        assert isinstance(self.root, nn.Module)
        opener = OPENERS.get(type(self.root))
        call = functools.partial(opener, self.root) if opener else self.root.forward
        return lambda: _returned(call(*args, **kwargs)), []

    def length(self, x: Any) -> Any:
        """The size of the first dimension of a proxied tensor, a proxy where it is the batch; ``None`` for all else."""
        if type(x) is not ValueProxy or not isinstance(x.node.meta[PROBE][0], Tensor):
            return None
        first, second = (value.shape[:1] for value in x.node.meta[PROBE])
        return None if first == second else x.call("size", (0,), {})

    def integer(self, x: Any) -> Any:
        """``int(x)`` of a proxied number that depends on the batch, as a proxy; ``None`` for all else."""
        if type(x) is not ValueProxy or x.node.meta[PROBE][0] == x.node.meta[PROBE][1]:
            return None
        found = whole_quotient(x.node)
        if found is None:
            return None
        return self.create_proxy("call_function", operator.floordiv, (self.proxy(found[0]), found[1]), {})

    def constants(self, node: fx.Node) -> tuple[Tensor | None, Tensor | None]:
        """The values at both batch sizes of a tensor that does not depend on the data."""
        was, self.prober.busy = self.prober.busy, True  # buffers as tensors
        try:
            first, second = (constant_value(self.root, self.graph, node, lane) for lane in (0, 1))
        finally:
            self.prober.busy = was
        return first, second

    def concrete(self, proxy: ValueProxy) -> Any:
        """The Python value of a proxy, or an error that says why there is none."""
        first, second = proxy.node.meta[PROBE]
        if isinstance(first, Tensor):
            first, second = self.constants(proxy.node)
            if first is None or second is None:
                raise TraceError("the code branches on the values of a tensor that depends on the input")
        same = torch.equal(first, second) if isinstance(first, Tensor) else first == second
        if not same:
            self.asked_for_batch = True
            raise TraceError(f"the code needs a fixed number that depends on the batch size ({first} for 5 samples)")
        return first


def _returned(value: Any) -> Any:
    """Records and mappings of a class of the user's as dictionaries: a graph returns no other classes."""
    if isinstance(value, Mapping):
        return {key: _returned(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _returned(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if type(value) in (tuple, list):
        return type(value)([_returned(item) for item in value])
    return value


def _is_tensor(value: Any) -> bool:
    return isinstance(value, ValueProxy) and isinstance(value.node.meta[PROBE][0], Tensor)


def _number(value: Any) -> Any:
    """A tensor of one number, proxied or not, as that number: torch takes it in the place of one."""
    return value.item() if _is_tensor(value) or (isinstance(value, Tensor) and value.dim() == 0) else value


_FACTORIES = words(
    "zeros ones full empty arange linspace eye rand randn tensor scalar_tensor tril_indices triu_indices as_tensor"
)

_METHODS = words("expand new_zeros new_ones new_empty")
"""Methods of tensors whose arguments torch reads before it asks whether one of them is a proxy."""


@contextlib.contextmanager
def recording(tracer: ValueTracer) -> Iterator[None]:
    """Record tensor factories with proxied sizes, and trace through functions that ``fx.wrap`` would hide."""
    # torch lists its functions when it is first asked about one, and keeps the list: it may not come to hold wrappers,
    # which would keep the tracer, and with it the first network of all, for ever.
    torch.overrides.is_tensor_method_or_property(torch.Tensor.expand)
    originals = {name: getattr(torch, name) for name in _FACTORIES}
    as_tensor = torch.as_tensor
    numeric = {torch.full, torch.arange, torch.linspace}
    methods = {name: getattr(torch.Tensor, name) for name in _METHODS}

    def wrap(original: Callable[..., Any], method: str | None = None) -> Callable[..., Any]:
        kind, target = ("call_function", original) if method is None else ("call_method", method)

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            found: list[fx.Proxy] = []
            fx.node.map_aggregate((args, kwargs), lambda a: found.append(a) if isinstance(a, fx.Proxy) else a)
            if not found or tracer.prober.busy:
                return original(*args, **kwargs)
            if original is as_tensor and _is_tensor(args[0]):  # of a tensor it is a change of type, and of no device
                dtype = kwargs.get("dtype", args[1] if len(args) > 1 else None)
                return args[0] if dtype is None else args[0].to(dtype)
            if args and isinstance(args[0], np.ndarray):  # a constant, whatever proxy says where it shall lie
                kept = {key: value for key, value in kwargs.items() if key != "device"}
                return original(*args, **{k: v.concrete() if isinstance(v, ValueProxy) else v for k, v in kept.items()})
            if original in numeric:
                args = tuple(_number(a) for a in args)
            return tracer.create_proxy(kind, target, args, kwargs)

        return wrapper

    attention = F.multi_head_attention_forward

    @functools.wraps(attention)
    def opened(query: Any, *args: Any, **kwargs: Any) -> Any:
        traced = isinstance(query, fx.Proxy) and not tracer.prober.busy and kwargs.get("static_k") is None
        return (functional_attention if traced else attention)(query, *args, **kwargs)

    def limits(original: Any) -> Callable[..., Any]:
        return lambda kind=None: original(kind.concrete() if isinstance(kind, ValueProxy) else kind)

    wrapped: dict[Any, Any] = getattr(fx_internals, "_wrapped_fns_to_patch", {})
    hidden = {key: frame for key, frame in wrapped.items() if key[1] in frame}
    types = {name: getattr(torch, name) for name in ("finfo", "iinfo")}
    try:
        for key in hidden:
            del wrapped[key]
        for name, original in originals.items():
            setattr(torch, name, wrap(original))
        for name, original in methods.items():
            setattr(torch.Tensor, name, wrap(original, name))
        for name, original in types.items():
            setattr(torch, name, limits(original))
        F.multi_head_attention_forward = opened
        yield
    finally:
        F.multi_head_attention_forward = attention
        wrapped.update(hidden)
        for name in methods:
            delattr(torch.Tensor, name)  # they are inherited
        for name, original in {**originals, **types}.items():
            setattr(torch, name, original)


def symbolic_trace(
    root: nn.Module, example: tuple[Tensor, ...], binding: Binding, leaves: Sequence[str] = ()
) -> tuple[fx.Graph, Prober]:
    """``root`` as a graph with probes.

    ``binding`` holds the positional and the named arguments of ``forward``; its tensors, in order, are ``example``.
    """
    for integers in (False, True):  # the stand-in for ``int`` is no type for torch: only where nothing else helps
        prober = Prober(example)
        tracer = ValueTracer(prober, binding, leaves)
        with contextlib.ExitStack() as stack:
            stack.enter_context(attributes_restored(root, lambda x: isinstance(x, fx.Proxy)))
            if integers:
                stack.enter_context(traced_integers(root, tracer.integer, is_user_file))
            try:
                with torch.no_grad(), recording(tracer), traced_lengths(tracer.length):
                    return tracer.trace(root), prober
            except TraceError:
                if integers or not tracer.asked_for_batch:
                    raise
    raise AssertionError("unreachable")
