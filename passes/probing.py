"""What each node would compute, for two batch sizes at once, without computing it.

A *probe* is a pair of values, one per *lane*; lane 0 has batch size 5, lane 1 has 3. Tensors are fake (shape, type,
device and storage identity, no data), integers are real. A number that is the same in both lanes does not depend on
the batch size; one that differs does. This tells constants from batch sizes without symbolic shapes.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._pytree import tree_map_only

from fxfuse.errors import GraphError
from fxfuse.passes.graphs import attribute

LANES = (5, 3)
"""The two batch sizes."""
PROBE = "probe"
"""Key in ``node.meta`` of the pair of values."""


def at_batch(example: tuple[Tensor, ...], size: int) -> tuple[Tensor, ...]:
    """``example`` with its batch (the first dimension that the first input has) repeated or cut to ``size``."""
    batch = example[0].shape[0] if example[0].dim() else 0
    return tuple(_resize(x, batch, size) for x in example)


def _resize(x: Tensor, batch: int, size: int) -> Tensor:
    if x.dim() == 0 or x.shape[0] != batch:
        return x
    return x[torch.arange(size, device=x.device) % batch]


class Prober:
    """Evaluates nodes on fake tensors, in both lanes."""

    def __init__(self, example: tuple[Tensor, ...]) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.busy = False
        self.assumed: dict[str, None] = {}
        """The places of checks that depend on the data and were taken to hold."""
        self.inputs = [tuple(self.mode.from_tensor(x) for x in at_batch(example, size)) for size in LANES]
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def placeholder(self, index: int) -> tuple[Any, Any]:
        """The probe of the ``index``-th graph input."""
        return self.inputs[0][index], self.inputs[1][index]

    def tensor(self, real: Tensor) -> tuple[Any, Any]:
        """The probe of a parameter, buffer or constant; the same fake tensor each time."""
        if isinstance(real, FakeTensor):
            return real, real
        if id(real) not in self._kept:
            self._kept[id(real)] = (real, self.mode.from_tensor(real))  # keeps `real` alive: ids stay unique
        fake = self._kept[id(real)][1]
        return fake, fake

    def node(self, root: nn.Module, node: fx.Node) -> tuple[Any, Any]:
        """The probe of a node whose inputs have probes."""
        if node.op == "get_attr":
            was, self.busy = self.busy, True
            try:
                value = attribute(root, str(node.target))
            finally:
                self.busy = was
            return self.tensor(value) if isinstance(value, Tensor) else (value, value)
        if node.op == "output":
            return tuple(fx.map_arg(node.args[0], lambda n, i=i: n.meta[PROBE][i]) for i in (0, 1))  # type: ignore[return-value,misc]
        call = _shortcut(root, node) or _callee(root, node)
        if not any(n.meta[PROBE][0] is not n.meta[PROBE][1] for n in node.all_input_nodes):
            value = self._run(call, node, 0)
            return value, value
        return self._run(call, node, 0), self._run(call, node, 1)

    def _run(self, call: Callable[..., Any], node: fx.Node, lane: int) -> Any:
        args = fx.map_arg(node.args, lambda n: n.meta[PROBE][lane])
        kwargs = fx.map_arg(node.kwargs, lambda n: n.meta[PROBE][lane])
        args = tree_map_only(Tensor, lambda t: self.tensor(t)[0], args)
        was, self.busy = self.busy, True
        try:
            with torch.no_grad(), self.mode:
                return call(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            if node.op != "call_module":
                raise
            return self._run_for_real(call, args, kwargs)  # an opaque leaf may look at its data
        finally:
            self.busy = was

    def _run_for_real(self, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """On stand-ins for the data: integers are 0, which every table has, or 1, which every length may be."""

        def stand_in(number: int, fake: Tensor) -> Tensor:
            if fake.is_floating_point():
                return torch.randn(fake.shape, dtype=fake.dtype, device=fake.device)
            return torch.full(fake.shape, number, dtype=fake.dtype, device=fake.device)

        failure: Exception | None = None
        for number in (0, 1):
            real_args, real_kwargs = tree_map_only(Tensor, partial(stand_in, number), (args, kwargs))
            try:
                with torch.no_grad():
                    return tree_map_only(Tensor, self.mode.from_tensor, call(*real_args, **real_kwargs))
            except Exception as error:  # the user's code may raise anything
                failure = failure or error
        assert failure is not None
        raise failure


_SAME_SHAPE = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)


def _shortcut(root: nn.Module, node: fx.Node) -> Callable[..., Any] | None:
    """Norms keep shapes; asking them takes fake tensors longer than all else together."""
    if node.op == "call_module" and isinstance(root.get_submodule(str(node.target)), _SAME_SHAPE):
        return torch.empty_like
    return None


def _callee(root: nn.Module, node: fx.Node) -> Callable[..., Any]:
    if node.op == "call_function":
        assert callable(node.target)
        return node.target
    if node.op == "call_module":
        return root.get_submodule(str(node.target)).__call__
    name = str(node.target)
    return lambda self, *args, **kwargs: getattr(self, name)(*args, **kwargs)


def probe(module: fx.GraphModule, example: tuple[Tensor, ...]) -> Prober:
    """Give every node of ``module`` its probe and keep the prober in ``module.meta`` for ``Editor``."""
    prober = Prober(example)
    index = 0
    for node in module.graph.nodes:
        if node.op == "placeholder":
            node.meta[PROBE] = prober.placeholder(index)
            index += 1
        else:
            node.meta[PROBE] = prober.node(module, node)
    module.meta[PROBE] = prober
    return prober


def clear_probes(module: fx.GraphModule) -> None:
    """Forget all probes: fake tensors have no place in a finished program."""
    module.meta.pop(PROBE, None)
    for node in module.graph.nodes:
        node.meta.pop(PROBE, None)


class Editor:
    """Makes nodes that carry probes; what a graph pass uses to change a graph."""

    def __init__(self, module: fx.GraphModule) -> None:
        if PROBE not in module.meta:
            raise GraphError("the graph has no probes; call fxfuse.passes.probing.probe(module, example) first")
        self.module = module
        self.graph = module.graph
        self.prober: Prober = module.meta[PROBE]
        self._like: fx.Node | None = None

    @contextlib.contextmanager
    def at(self, node: fx.Node, *, after: bool = False) -> Iterator[None]:
        """New nodes go before (or after) ``node`` and inherit its source line and scope."""
        was, self._like = self._like, node
        try:
            with self.graph.inserting_after(node) if after else self.graph.inserting_before(node):
                yield
        finally:
            self._like = was

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A ``call_function`` node."""
        return self._finish(self.graph.call_function(target, args, kwargs))

    def method(self, name: str, *args: Any, **kwargs: Any) -> fx.Node:
        """A ``call_method`` node."""
        return self._finish(self.graph.call_method(name, args, kwargs))

    def get(self, path: str) -> fx.Node:
        """A ``get_attr`` node."""
        return self._finish(self.graph.create_node("get_attr", path))

    def leaf(self, path: str, *args: Any) -> fx.Node:
        """A ``call_module`` node."""
        return self._finish(self.graph.create_node("call_module", path, args))

    def size(self, tensor: fx.Node, dim: int) -> fx.Node:
        """A read of a size, in its one spelling."""
        return self.method("size", tensor, dim)

    def _finish(self, node: fx.Node) -> fx.Node:
        if self._like is not None:
            node.meta.update({k: v for k, v in self._like.meta.items() if k != PROBE})
        node.meta[PROBE] = self.prober.node(self.module, node)
        return node


def same_lanes(value: tuple[Any, Any]) -> bool:
    """Whether a probe does not depend on the batch size (shapes are compared for tensors)."""
    first, second = value
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.shape == second.shape
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(same_lanes((first[k], second[k])) for k in first)
    if isinstance(first, tuple | list) and isinstance(second, tuple | list):
        return len(first) == len(second) and all(map(same_lanes, zip(first, second, strict=True)))
    return bool(first == second)
