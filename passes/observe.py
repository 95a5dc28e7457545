"""Run a parent and hand over the values of chosen nodes, each as soon as it is there.

Nothing is kept: a value lives until its last reader in the graph has run, unless the visitor holds on to it.
"""

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxfuse.errors import DataError
from fxfuse.passes.graphs import attribute
from fxfuse.types import Axes, Program

Visit = Callable[[str, Tensor], None]
"""Called with a node's name and its value."""

Rule = Callable[[fx.Node, Any, Any], Any]
"""Makes a node's value of the node, its value, and its input's if it has one input (``None`` otherwise)."""


def placed(module: fx.GraphModule, device: torch.device) -> fx.GraphModule:
    """A twin of ``module`` on ``device``, in evaluation mode, whose parameters ask for no gradient.

    Tensors that are on ``device`` already are shared, not copied: the twin is for reading only.
    """
    memo: dict[int, Any] = {}

    def twin(tensor: Tensor) -> Tensor:
        moved = tensor.detach().to(device)
        return nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved

    plain = (attribute(module, str(node.target)) for node in module.graph.nodes if node.op == "get_attr")
    for tensor in (*module.parameters(), *module.buffers(), *plain):
        if isinstance(tensor, Tensor) and id(tensor) not in memo:
            memo[id(tensor)] = twin(tensor)
    result = copy.deepcopy(module, memo).eval()
    for part in result.modules():
        if isinstance(part, nn.RNNBase):
            part.flatten_parameters()
    return result


@contextlib.contextmanager
def evaluating(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, ``module`` is on ``device`` and in evaluation mode; afterwards it is where and as it was."""
    modes = {part: part.training for part in module.modules()}
    home = next((t.device for t in (*module.parameters(), *module.buffers())), device)
    module.eval()
    try:
        if home != device:
            module.to(device)
        yield
    finally:
        if home != device:
            module.to(home)
        for part, training in modes.items():
            part.training = training


class Observer(fx.Interpreter):
    """A parent on its device, ready to be run batch after batch."""

    def __init__(self, program: Program, nodes: Iterable[str], device: torch.device, axes: Axes | None = None) -> None:
        super().__init__(placed(program.module, device))
        self.program = program
        self.axes = axes
        self.device = device
        self.watched = frozenset(nodes)
        self.recurrent = any(isinstance(part, nn.RNNBase) for part in self.module.modules())
        self._visit: Visit = ignore
        self._rule: Rule | None = None
        self._differentiable = False
        self._sums: dict[str, Tensor] = {}

    def observe(
        self, inputs: tuple[Tensor, ...], visit: Visit, *, differentiable: bool = False, rule: Rule | None = None
    ) -> Any:
        """The network's output on ``inputs``; ``visit`` sees the value of every watched node in topological order.

        With ``differentiable`` every visited value is part of one autograd graph that starts at the first of them.
        ``rule`` replaces the values of nodes before they are visited.
        Raises :class:`DataError` where the network rejects the inputs.
        """
        self._visit, self._differentiable, self._sums, self._rule = visit, differentiable, {}, rule
        try:
            with torch.enable_grad() if differentiable else torch.no_grad(), self.backward_allowed():
                return super().run(*inputs, enable_io_processing=False)
        except (torch.OutOfMemoryError, DataError):
            raise
        except Exception as error:  # whatever the network's operators raise at such inputs
            shapes = ", ".join(str(list(x.shape)) for x in inputs)
            reason = str(error).strip().split("\n")[0]
            raise DataError(
                f"{self.program.name} cannot run on inputs of shape {shapes}: {reason}; "
                f"give data of the shape that it was traced with, {self._expected()}"
            ) from error
        finally:
            self.env.clear()
            self._visit, self._rule = ignore, None

    def _expected(self) -> str:
        return ", ".join(str(["batch", *x.shape[1:]]).replace("'", "") for x in self.program.example)

    @contextlib.contextmanager
    def backward_allowed(self) -> Iterator[None]:
        """Where gradients are taken: recurrent layers in evaluation mode have a backward pass, but not in cuDNN."""
        if self._differentiable and self.recurrent and self.device.type == "cuda":
            with torch.backends.cudnn.flags(enabled=False):
                yield
        else:
            yield

    def run_node(self, n: fx.Node) -> Any:
        """One node, and the visit that it may get."""
        value = super().run_node(n)
        if self._rule is not None:
            value = self._rule(n, value, self.env[n.all_input_nodes[0]] if len(n.all_input_nodes) == 1 else None)
        if n.name in self.watched and isinstance(value, Tensor) and value.is_floating_point():
            if self._differentiable and not value.requires_grad:
                value = value.detach().requires_grad_()
            accuracy = torch.promote_types(value.dtype, torch.float32)
            self._sums[n.name] = value.detach().sum(dtype=accuracy)
            self._visit(n.name, value)
        return value

    def check_finite(self) -> None:
        """Raise :class:`DataError` if a value that the last run visited was infinite or not a number."""
        if not self._sums or bool(torch.stack([s.double() for s in self._sums.values()]).isfinite().all()):
            return
        culprit = next(name for name, total in self._sums.items() if not bool(total.isfinite()))
        node = next(node for node in self.graph.nodes if node.name == culprit)
        raise DataError(
            f"{self.program.name} has infinite or undefined activations, first seen at {place(node)}: look for such "
            "values in the data (is it scaled as in training?) and in the weights"
        )


def place(node: fx.Node) -> str:
    """Where a node is, in words: its name, the module that it calls or lies in, the user's source line."""
    path = str(node.target) if node.op == "call_module" else str(node.meta.get("scope", ""))
    line = str(node.meta.get("where", ""))
    known = ", ".join(part for part in (path and f"module {path}", line) if part)
    return f"node {node.name}" + (f" ({known})" if known else "")


def to_device(inputs: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
    """The inputs on ``device``."""
    return tuple(x.to(device, non_blocking=True) for x in inputs)


def check_inputs(program: Program, inputs: tuple[Tensor, ...]) -> None:
    """Raise :class:`DataError` unless there is one tensor per graph input."""
    if len(inputs) != len(program.example):
        raise DataError(
            f"{program.name} takes {len(program.example)} input(s) but the data has {len(inputs)} per sample; "
            "give one tensor per input, in the order of the forward method's arguments"
        )


def ignore(name: str, value: Tensor) -> None:
    """A visit that does nothing."""
    del name, value
