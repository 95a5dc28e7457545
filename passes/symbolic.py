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
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.fx._symbolic_trace as fx_internals
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxfuse.errors import TraceError
from fxfuse.passes.attributes import attributes_restored
from fxfuse.passes.demands import Unknown, demanded
from fxfuse.passes.graphs import SCOPE, WHERE, is_torch_leaf, words
from fxfuse.passes.integers import traced_integers, whole_quotient
from fxfuse.passes.kinds import traced_kinds
from fxfuse.passes.lengths import traced_lengths
from fxfuse.passes.normalizing.aliases import mutated
from fxfuse.passes.normalizing.constants import constant_value
from fxfuse.passes.openers import OPENERS, functional_attention
from fxfuse.passes.packing import is_padded
from fxfuse.passes.probing import PROBE, Prober
from fxfuse.passes.proxies import ValueProxy

Binding = tuple[tuple[tuple[str, Any], ...], tuple[tuple[str, Any], ...]]
_HERE = Path(__file__).resolve().parent
_NOT_USER = (str(Path(torch.__file__).parent), str(_HERE), str(_HERE.parent / "fxfuse" / "passes"), "<")


def is_user_file(name: str) -> bool:
    """Whether a source file is neither torch's nor ours."""
    return not name.startswith(_NOT_USER)


def user_place() -> tuple[str, int]:
    """File and line of the innermost frame that is neither torch's nor ours; no file if there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if is_user_file(frame.f_code.co_filename):
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
    return "", 0


def user_frame() -> str:
    """The same as ``file.py:line``."""
    file, line = user_place()
    return f"{Path(file).name}:{line}" if file else ""


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
        self.read: dict[str, Any] = {}
        """The parameters and buffers that the code has read, by name."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """``torch.nn`` layers with state, and what the user named by path or class."""
        if m is self.opened or self._rewritten(m, module_qualified_name):
            return False
        named = module_qualified_name in self.leaves or type(m).__name__ in self.leaves
        return named or is_torch_leaf(m)

    def _rewritten(self, m: nn.Module, path: str) -> bool:
        """Whether the code has given a parameter of a layer other numbers before it calls the layer: a leaf would have
        those of the state dict."""
        for name, _ in m.named_parameters(path, recurse=False):
            proxy = self.read.get(name)
            if proxy is not None and (
                proxy.node.op != "get_attr" or any(mutated(user) is proxy.node for user in proxy.node.users)
            ):
                return True
        return False

    def create_arg(self, a: Any) -> Any:
        """Proxies are asked for first: here they pass for tensors. Numbers of numpy as Python's."""
        if isinstance(a, fx.Proxy):
            return a.node
        return super().create_arg(a.item() if isinstance(a, np.generic) else a)

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

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Parameters and buffers as nodes, except while a probe is being computed."""
        if self.prober.busy:
            return attr_val
        self.read = parameter_proxy_cache
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
                truth = demanded(*user_place())
                if truth is None:
                    raise TraceError("the code branches on the values of a tensor that depends on the input")
                self.prober.assumed[user_frame()] = None
                return Unknown(truth)
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
    return type(value) is ValueProxy and isinstance(value.node.meta[PROBE][0], Tensor)


def _number(value: Any) -> Any:
    """A tensor of one number, proxied or not, as that number: torch takes it in the place of one."""
    return value.item() if _is_tensor(value) or (isinstance(value, Tensor) and value.dim() == 0) else value


_FACTORIES = words(
    "zeros ones full empty arange linspace eye rand randn tensor scalar_tensor tril_indices triu_indices as_tensor"
)

_METHODS = words("expand new_zeros new_ones new_empty type to")
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

    def variable(cls: type, data: Any = None, *args: Any, **kwargs: Any) -> Any:
        """A tensor by its name of old: a proxy is one already."""
        return data if isinstance(data, fx.Proxy) else type.__call__(cls, data, *args, **kwargs)

    def limits(original: Any) -> Callable[..., Any]:
        return lambda kind=None: original(kind.concrete() if isinstance(kind, ValueProxy) else kind)

    of_old: Any = type(torch.autograd.Variable)
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
        of_old.__call__ = variable
        yield
    finally:
        if "__call__" in vars(of_old):
            del of_old.__call__  # it is inherited
        F.multi_head_attention_forward = attention
        wrapped.update(hidden)
        for name in methods:
            delattr(torch.Tensor, name)  # they are inherited
        for name, original in {**originals, **types}.items():
            setattr(torch, name, original)
        for remembered in vars(sys.modules.get("einops.einops", object)).values():
            if hasattr(remembered, "cache_clear"):  # results by sizes, which would keep proxies, and so the network
                remembered.cache_clear()


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
                with torch.no_grad(), recording(tracer), traced_lengths(tracer.length), traced_kinds(_is_tensor):
                    return tracer.trace(root), prober
            except TraceError:
                if integers or not tracer.asked_for_batch:
                    raise
    raise AssertionError("unreachable")
