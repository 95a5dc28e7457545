"""The torch.export front end: an exported program as a graph over the user's own modules.

``torch.export`` runs the user's code for real and records aten operators, so it follows what symbolic tracing cannot.
It also forgets the modules, lifts parameters to inputs, bakes devices in, and keeps guards. Here its graph is put back
over the user's module tree: parameters are read by name, inputs carry the user's names, regions that only switch
gradients or autocast are inlined, and the output has its structure again. Respelling aten operators and giving layers
back are graph passes of normalisation, shared with the other front end.
"""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils._pytree import tree_unflatten

from fxfuse.errors import TraceError
from fxfuse.passes.binding import Bound
from fxfuse.passes.checking import plain
from fxfuse.passes.cures import plain_attention
from fxfuse.passes.graphs import SCOPE, WHERE, CanonicalModule, assemble, attribute, has_attribute, install
from fxfuse.passes.lengths import traced_lengths
from fxfuse.passes.probing import LANES, at_batch, probe
from fxfuse.passes.symbolic import is_user_file

_ROOT = "network"


class _Call(nn.Module):
    """The network as a function of its tensors alone, with a plain output."""

    def __init__(self, network: nn.Module, bound: Bound) -> None:
        super().__init__()
        self.network = network
        self.bound = bound

    def forward(self, *tensors: Tensor) -> Any:
        """Run the network."""
        args, kwargs = self.bound.call(tensors)
        return plain(self.network(*args, **kwargs))


def export_trace(module: nn.Module, bound: Bound) -> CanonicalModule:
    """``module`` (which is used up) as a graph of aten operators over its own parameters.

    Raises:
        TraceError: the batch size is baked in. Errors of ``torch.export`` come through as they are.
    """
    program = _export(module, bound)
    builder = _Builder(module, program, bound.names)
    result = assemble(module, builder.build())
    try:
        probe(result, bound.tensors)
    except Exception as error:  # whatever an operator raises at sizes that do not fit
        raise TraceError(
            f"the code works for one batch size only: its exported graph fails at another ({error})"
        ) from error
    return result


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Without torch.export's remarks about its own internals, on which the user cannot act: what it raises says it."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _export(module: nn.Module, bound: Bound) -> ExportedProgram:
    example = at_batch(bound.tensors, LANES[0])
    batched = [x.dim() > 0 and x.shape[0] == LANES[0] and y.shape[0] == bound.tensors[0].shape[0]
               for x, y in zip(example, bound.tensors, strict=True)]  # fmt: skip
    shapes = tuple({0: Dim.AUTO} if b else None for b in batched)
    with torch.no_grad(), plain_attention(), _hushed(), traced_lengths(_length):
        program = torch.export.export(_Call(module, bound), example, dynamic_shapes={"tensors": shapes}, strict=False)
        if any(_vectorised(node) for node in program.graph.nodes):
            program = program.run_decompositions({})
    inputs = [s.arg.name for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]
    by_name = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for name, has_batch in zip(inputs, batched, strict=True):
        value = by_name[name].meta.get("val")
        if has_batch and isinstance(value, Tensor) and isinstance(value.shape[0], int):
            raise TraceError(f"the code works for one batch size only: torch.export fixed it at {value.shape[0]}")
    return program


def _vectorised(node: fx.Node) -> bool:
    """Whether a node opens or closes ``torch.vmap``: what lies between works on single samples."""
    return "_functorch" in str(getattr(node.target, "__module__", ""))


def _length(x: Any) -> Any:
    return x.shape[0] if isinstance(x, Tensor) and x.dim() and not isinstance(x.shape[0], int) else None


class _Builder:
    def __init__(self, module: nn.Module, program: ExportedProgram, names: Sequence[str]) -> None:
        self.module, self.program, self.names = module, program, names
        self.graph = fx.Graph()
        self.values: dict[fx.Node, Any] = {}

    def build(self) -> fx.Graph:
        """The new graph."""
        specs = {spec.arg.name: spec for spec in self.program.graph_signature.input_specs}
        placeholders = [n for n in self.program.graph.nodes if n.op == "placeholder"]
        names = iter(self.names)
        for node in placeholders:
            if specs[node.name].kind is InputKind.USER_INPUT:
                self.values[node] = self.graph.placeholder(next(names))
        for node in placeholders:
            if specs[node.name].kind is not InputKind.USER_INPUT and node.users:
                self.values[node] = self.graph.get_attr(self._path(specs[node.name]))
        outputs = self._inline(self.program.graph, self.program.graph_module)
        kinds = [spec.kind for spec in self.program.graph_signature.output_specs]
        kept = [value for value, kind in zip(outputs, kinds, strict=True) if kind is OutputKind.USER_OUTPUT]
        self.graph.output(_plain(tree_unflatten(kept, self.program.call_spec.out_spec)))
        return self.graph

    def _path(self, spec: Any) -> str:
        """The user's own name of a lifted tensor, or a place made for it."""
        path = str(spec.target).removeprefix(f"{_ROOT}.")
        if not has_attribute(self.module, path):
            table = self.program.constants if spec.target in self.program.constants else self.program.state_dict
            path = path.replace(".", "_")
            install(self.module, path, table[spec.target])
        return path

    def _inline(self, graph: fx.Graph, owner: nn.Module) -> tuple[Any, ...]:
        """Copy the nodes of ``graph``; nested graphs that compute what they would anyway are copied in place."""
        for node in graph.nodes:
            if node.op in {"placeholder", "get_attr"}:
                if node.op == "get_attr" and node not in self.values:
                    self.values[node] = self._attribute(owner, str(node.target))
            elif node.op == "output":
                result = fx.map_arg(node.args[0], self._value)
                return tuple(result) if isinstance(result, tuple | list) else (result,)
            elif isinstance(node.target, torch._ops.HigherOrderOperator):
                self._region(node)
            elif node.op == "call_function" and isinstance(self._first(node), tuple):
                self.values[node] = self._first(node)[node.args[1]]  # an item of an inlined region's result
            else:
                new = self.graph.node_copy(node, self._value)
                new.meta = {WHERE: _where(node), SCOPE: _scope(node)}
                self.values[node] = new
        return ()

    def _value(self, node: fx.Node) -> Any:
        return self.values[node]

    def _first(self, node: fx.Node) -> Any:
        first = node.args[0] if node.args else None
        return self.values.get(first) if isinstance(first, fx.Node) else None

    def _attribute(self, owner: nn.Module, path: str) -> Any:
        value = attribute(owner, path)
        if isinstance(value, nn.Module):
            return value
        name = f"_lifted_{path.replace('.', '_')}"
        if not has_attribute(self.module, name):
            install(self.module, name, value)
        return self.graph.get_attr(name)

    def _region(self, node: fx.Node) -> None:
        arguments = [self.values[a] if isinstance(a, fx.Node) else a for a in node.args]
        position = next((i for i, a in enumerate(arguments) if isinstance(a, fx.GraphModule)), None)
        if position is None or node.target.__name__ not in {"wrap_with_set_grad_enabled", "wrap_with_autocast"}:  # type: ignore[union-attr]
            raise TraceError(f"the operator {node.target} at {_where(node)} holds a graph of its own")
        inner: Any = arguments[position]
        for placeholder, value in zip(
            [n for n in inner.graph.nodes if n.op == "placeholder"], arguments[position + 1 :], strict=True
        ):
            self.values[placeholder] = value
        self.values[node] = self._inline(inner.graph, inner)


def _plain(value: Any) -> Any:
    """fx accepts plain dictionaries, tuples and lists as outputs."""
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, tuple | list):
        return type(value)([_plain(v) for v in value])
    return value


_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def _where(node: fx.Node) -> str:
    """The innermost line of the user's in the node's stack trace."""
    frames = [(f, n) for f, n in _FRAME.findall(node.meta.get("stack_trace") or "") if is_user_file(f)]
    return f"{Path(frames[-1][0]).name}:{frames[-1][1]}" if frames else ""


def _scope(node: fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    path = re.sub(r"^L\['self'\]\.?", "", path)
    return "" if path == _ROOT else path.removeprefix(f"{_ROOT}.")
