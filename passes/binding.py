"""Bind an example to ``forward``: which arguments are graph inputs, what they are called, and which are fixed.

Inputs are in the order of ``forward``'s arguments, whatever the order of a mapping's keys; what only ``**kwargs`` takes
comes last, in the order of the keys. Then a graph takes its inputs by position and by name as the network does.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_unflatten

from fxfuse.errors import DataError, TraceError, nearest


@dataclass(frozen=True, slots=True)
class Bound:
    """Arguments of ``forward`` by name; ``tensors`` are those of them that are tensors, in order."""

    positional: tuple[tuple[str, Any], ...]
    named: tuple[tuple[str, Any], ...]
    notes: tuple[str, ...] = ()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The graph inputs."""
        return tuple(value for _, value in (*self.positional, *self.named) if isinstance(value, Tensor))

    @property
    def names(self) -> tuple[str, ...]:
        """What the graph inputs are called."""
        return tuple(name for name, value in (*self.positional, *self.named) if isinstance(value, Tensor))

    @property
    def keywords(self) -> tuple[str, ...]:
        """The graph inputs that are given by name; they come last."""
        return tuple(name for name, value in self.named if isinstance(value, Tensor))

    def call(self, tensors: tuple[Tensor, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments with ``tensors`` in the places of the bound ones."""
        rest = iter(tensors)
        args = tuple(next(rest) if isinstance(v, Tensor) else v for _, v in self.positional)
        return args, {k: next(rest) if isinstance(v, Tensor) else v for k, v in self.named}


def bind(module: nn.Module, example: Any, name: str) -> Bound:
    """Match ``example`` with the signature of ``module.forward``.

    Raises:
        DataError: an argument is unknown, missing, or not a tensor where one is needed.
    """
    kwargs: Mapping[str, Any] = example if isinstance(example, Mapping) else {}
    args = () if isinstance(example, Mapping) else example if isinstance(example, tuple) else (example,)
    return _bind(module, *_as_exported(module, tuple(args), dict(kwargs)), name)


def _as_exported(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments as an exported program takes them: each either by position or by name, as it was exported."""
    spec = getattr(module, "_in_spec", None)
    if not isinstance(spec, TreeSpec) or spec.num_children != 2:
        return args, kwargs
    names = list(inspect.signature(module.forward).parameters)
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if len(args) > len(names) or given.keys() != set(names):
        return args, kwargs  # which the program refuses in its own words
    count = len(tree_unflatten(range(spec.num_leaves), spec)[0])
    return tuple(given[name] for name in names[:count]), {name: given[name] for name in names[count:]}


def _bind(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Bound:
    signature = inspect.signature(module.forward)
    parameters = signature.parameters.values()
    stars = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    known = [p.name for p in parameters if p.kind not in stars]
    loose = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    for key in kwargs:
        if key not in known and not loose:
            more = len(kwargs) > 1 and any(other in known for other in kwargs)
            cure = "Of data that hold more than the network takes, say by `inputs` what it takes"
            cure = cure if more else "Inputs go by the names of its arguments"
            raise DataError(
                f"{name}: {type(module).__name__}.forward has no argument {key!r}; {nearest(key, known)}. {cure}"
            )
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        shapes = [str(tuple(value.shape)) for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        more = len(args) > 1 and "too many" in str(error)
        cure = "; a label that is no integer per sample counts as an input, so name it as the label" if more else ""
        raise DataError(
            f"{name}: the data do not fit {type(module).__name__}.forward{signature}: {error}. Got tensors of shape "
            f"{', '.join(shapes)}{cure}"
        ) from None
    positional = tuple(zip(_places(signature, len(args)), args, strict=True))
    order = {key: place for place, key in enumerate(known)}
    named = tuple(sorted(kwargs.items(), key=lambda item: order.get(item[0], len(order))))
    bound = Bound(positional, named, ())
    tensors = bound.tensors
    if not tensors:
        raise DataError(f"{name}: the example holds no tensor; give the tensors that forward takes")
    for key, value in (*positional, *named):
        if isinstance(value, Mapping | list | tuple) and _holds_tensor(value):
            raise DataError(
                f"{name}: argument {key!r} is a {type(value).__name__} of tensors; graph inputs must be tensors. "
                "Take a part of the network that takes tensors (submodule, --submodule)"
            )
    first = tensors[0]
    if first.dim() == 0 or first.shape[0] == 0:
        raise DataError(
            f"{name}: the first input must have a batch dimension with samples. Got shape {tuple(first.shape)}"
        )
    if first.shape[0] == 1:
        return Bound(positional, named, ("the example held one sample; it was repeated",))
    return bound


def _places(signature: inspect.Signature, count: int) -> list[str]:
    """What the first ``count`` positional arguments are called; those that ``*args`` takes are numbered."""
    names: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
        elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            names.extend(f"{parameter.name}_{i}" for i in range(count - len(names)))
    return names[:count]


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    return any(isinstance(v, Tensor) or (isinstance(v, Mapping | list | tuple) and _holds_tensor(v)) for v in value)


def capture(module: nn.Module, example: Any, path: str, name: str) -> tuple[Bound, nn.Module]:
    """The sub-module at ``path`` and the arguments that it receives when ``module`` runs on ``example``.

    Raises:
        TraceError: there is no such sub-module, or the run does not reach it.
        DataError: the module rejects the example.
    """
    modules = {place: inner for place, inner in module.named_modules() if place}
    if path not in modules:
        raise TraceError(f"{name} has no sub-module {path!r}; {nearest(path, modules)}"[:600])
    target = modules[path]
    caught: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not caught:
            caught.append((args, kwargs))

    handle = target.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        args = () if isinstance(example, Mapping) else example if isinstance(example, tuple) else (example,)
        kwargs = dict(example) if isinstance(example, Mapping) else {}
        with torch.no_grad():
            module(*args, **kwargs)
    except Exception as error:  # the user's code; what happens behind the sub-module does not matter
        if not caught:
            raise DataError(
                f"{name} rejects the example: {(str(error).strip() or type(error).__name__).splitlines()[0]}; give it "
                f"what the whole network takes, on the way to {path}"
            ) from error
    finally:
        handle.remove()
    if not caught:
        raise TraceError(f"{name}: running the example never reaches the sub-module {path!r}")
    return _bind(target, *caught[0], f"{name}.{path}"), target
