"""Graphs that own the user's whole state.

``fx.GraphModule`` copies only what its graph reads and turns every buffer into a persistent one. A parent's state
dict must survive exactly, so the graph's modules are *grafted*: a skeleton of plain containers carries every parameter
and buffer of the user's module under the user's own name, used or not, tied or not, persistent or not.
"""

import copy
import itertools
import keyword
import re
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from fxfuse.passes.closures import twins_of_functions

WHERE = "where"
"""Key in ``node.meta``: the user's own source line, ``"swin.py:142"``."""
SCOPE = "scope"
"""Key in ``node.meta``: dotted path of the user's module that was running when the node was made."""
CLASSES = "classes"
"""Key in the module's ``meta``: the class, ``"package.file.Name"``, of the user's module at each dotted path."""

_STATE = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


class Container(nn.Module):
    """A place in the user's module tree that holds parameters, buffers and children, and computes nothing."""

    def forward(self, *_: Any) -> Any:
        """Containers are never called."""
        raise NotImplementedError("this module only holds parameters; call the graph that it belongs to")


class CanonicalModule(fx.GraphModule):
    """A graph module whose state dict is exactly the user's, also after ``copy.deepcopy``."""

    def recompile(self) -> Any:
        """Write the graph's code, whatever the user's modules are called."""
        spell_keywords(self.graph)
        return super().recompile()

    def __deepcopy__(self, memo: dict[int, Any]) -> "CanonicalModule":
        root = Container()
        memo[id(self)] = root  # whatever points back at the graph is not copied twice
        for name in _STATE:
            root.__dict__[name] = copy.deepcopy(self.__dict__[name], memo)
        root.__dict__["_version"] = self._version
        twin = CanonicalModule(root, copy_graph(self.graph), "CanonicalModule")
        graft(twin, root)
        twin.training = self.training
        twin.meta = dict(self.meta)
        memo[id(self)] = twin
        return twin


_PATH = re.compile(r"\bself((?:\.\w+)+)")


def spell_keywords(graph: fx.Graph) -> None:
    """Let the graph's code read modules and parameters by ``getattr`` where their names are Python keywords
    (``nn.ModuleDict({"in": .., "global": ..})``): ``self.in(x)`` is no Python."""
    paths = (str(node.target).split(".") for node in graph.nodes if node.op in {"call_module", "get_attr"})
    if any(keyword.iskeyword(part) for path in paths for part in path):
        graph.on_generate_code(lambda _: _by_getattr)


def _by_getattr(body: list[str]) -> list[str]:
    def spelt(found: re.Match[str]) -> str:
        text = "self"
        for part in found[1].split(".")[1:]:
            text = f'getattr({text}, "{part}")' if keyword.iskeyword(part) else f"{text}.{part}"
        return text

    return [_PATH.sub(spelt, line) for line in body]


M = TypeVar("M", bound=nn.Module)


def copied(module: M, *, share: bool = False) -> M:
    """A copy, also of a module that keeps the last result of a computation as an attribute (``weight_norm`` and the
    pruning of ``torch.nn.utils`` do), which ``copy.deepcopy`` alone refuses. With ``share`` its parameters are the
    module's own: for code that changes graphs and modules, but no weights. Parameters that were tied by their memory
    (``decoder.weight.data = encoder.weight.data``) are one in the copy. Functions kept as attributes that hold layers
    (``self.f = lambda x: m.b(m.a(x))``) hold those of the copy."""
    memo: dict[int, Any] = {id(p): p for p in module.parameters()} if share else {}
    for first, *others in _tied(module):
        memo.update((id(p), copy.deepcopy(first, memo)) for p in others)
    for part in module.modules():
        for value in part.__dict__.values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
            elif isinstance(value, torch.jit.ScriptFunction):  # it holds nothing of the network, and refuses a copy
                memo[id(value)] = value
    fill = twins_of_functions(module, memo)
    twin = copy.deepcopy(module, memo)
    fill()
    return twin


def overlapping(module: nn.Module) -> list[tuple[str, str]]:
    """Names of parameters that share memory without being the same tensor, as a transposed view does."""
    found: list[tuple[int, int, str, Any]] = []
    for name, p in module.named_parameters():
        if not p.is_meta and p.numel():
            last = sum((n - 1) * abs(s) for n, s in zip(p.shape, p.stride(), strict=True))
            kind = (p.data_ptr(), p.shape, p.stride())
            found.append((p.data_ptr(), p.data_ptr() + last * p.element_size(), name, kind))
    found.sort(key=lambda item: item[:2])
    return [(a[2], b[2]) for a, b in itertools.pairwise(found) if b[0] <= a[1] and a[3] != b[3]]


def _tied(module: nn.Module) -> list[list[nn.Parameter]]:
    """Parameters that are several objects over the same numbers in the same shape."""
    found: dict[Any, list[nn.Parameter]] = {}
    for p in module.parameters():
        if type(p) is nn.Parameter and not p.is_meta and p.numel():
            found.setdefault((p.data_ptr(), p.shape, p.stride(), p.dtype, p.device), []).append(p)
    return [same for same in found.values() if len(same) > 1]


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """A copy of ``graph`` with the same node names and the nodes' ``meta`` copied one level deep."""
    twin = fx.Graph(tracer_cls=graph._tracer_cls)
    values: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        values[node] = twin.node_copy(node, lambda n: values[n])
        values[node].meta = dict(node.meta)
    return twin


def graft(module: fx.GraphModule, root: nn.Module) -> None:
    """Give ``module`` exactly the parameters, buffers and modules of ``root`` (shared, not copied)."""
    for name in _STATE:
        module.__dict__[name] = root.__dict__[name]
    module.__dict__["_version"] = root._version


def assemble(root: nn.Module, graph: fx.Graph) -> CanonicalModule:
    """A graph module over ``root``'s state: leaf modules that ``graph`` calls stay, all others become containers.

    Tensors that ``graph`` reads but that are neither parameters nor buffers of ``root`` become non-persistent buffers.
    """
    called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    bones = skeleton(root, called)
    for node in graph.nodes:
        if node.op == "get_attr" and not has_attribute(bones, str(node.target)):
            install(bones, str(node.target), attribute(root, str(node.target)))
    result = CanonicalModule(bones, graph, "CanonicalModule")
    graft(result, bones)
    result.meta[CLASSES] = {
        path: f"{type(m).__module__}.{type(m).__qualname__}" for path, m in root.named_modules(remove_duplicate=False)
    }
    return result


def skeleton(root: nn.Module, called: set[str]) -> nn.Module:
    """The module tree of ``root`` without its code: modules in ``called`` and ``torch.nn`` leaves stay as they are."""
    made: dict[int, nn.Module] = {}

    def build(module: nn.Module, path: str) -> nn.Module:
        if id(module) in made:
            return made[id(module)]
        if path and (path in called or is_torch_leaf(module)):
            made[id(module)] = module
            return module
        bone = made[id(module)] = _bone(module)
        for name, child in module._modules.items():
            inner = f"{path}.{name}" if path else name
            if child is not None and (_has_state(child) or any(_inside(target, inner) for target in called)):
                bone.add_module(name, build(child, inner))
        return bone

    return build(root, "")


def _bone(module: nn.Module) -> Container:
    bone = Container()
    bone.training = module.training
    bone.__dict__["_version"] = module._version  # state dicts carry it, and some modules read old ones differently
    for name, parameter in module._parameters.items():
        bone.register_parameter(name, parameter)
    for name, buffer in module._buffers.items():
        bone.register_buffer(name, buffer, persistent=name not in module._non_persistent_buffers_set)
    return bone


def _has_state(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def _inside(target: str, path: str) -> bool:
    return target == path or target.startswith(path + ".")


def is_torch_leaf(module: nn.Module) -> bool:
    """Whether ``module`` is a plain ``torch.nn`` layer with state of its own: a convolution, a norm, an LSTM ...

    Stateless layers are functions, composite ones (attention, transformers, containers) are opened, and layers whose
    weights are computed (parametrisations, hooks) show their computation.
    """
    if not type(module).__module__.startswith("torch.nn.modules") or type(module).__name__ in _OPENED:
        return False
    if not module._parameters and not module._buffers:
        return False
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    return not any(hooks) and not module._modules and not parametrize.is_parametrized(module)


_OPENED = frozenset({"MultiheadAttention", "ParameterList", "ParameterDict"})


def target_name(node: fx.Node) -> str:
    """The plain name of what a node calls or reads."""
    return str(node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target))


def attribute(root: nn.Module, path: str) -> Any:
    """The attribute at a dotted path."""
    value: Any = root
    for part in path.split("."):
        value = getattr(value, part)
    return value


def has_attribute(root: nn.Module, path: str) -> bool:
    """Whether there is an attribute at a dotted path."""
    value: Any = root
    for part in path.split("."):
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True


def install(root: nn.Module, path: str, value: Any) -> None:
    """Put a constant tensor at a dotted path as a non-persistent buffer, making containers on the way."""
    if not isinstance(value, Tensor):
        raise TypeError(f"the attribute {path!r} is not a tensor but a {type(value).__name__}")
    *parents, last = path.split(".")
    owner = root
    for part in parents:
        if part not in owner._modules:
            owner.add_module(part, Container())
        owner = owner.get_submodule(part)
    owner.register_buffer(last, value.detach(), persistent=False)


def replace_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put ``module`` at a dotted path, in the place of what is there, wherever that very object occurs."""
    *parents, last = path.split(".")
    owner = root.get_submodule(".".join(parents))
    old = owner._modules.get(last)
    owner.add_module(last, module)
    if old is not None:
        for other in list(root.modules()):
            for name, child in other._modules.items():
                if child is old:
                    other._modules[name] = module


def words(text: str) -> list[str]:
    """Names written in a row."""
    return text.split()
