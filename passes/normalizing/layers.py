"""Give functions their layers back: ``F.conv2d(x, conv.weight, conv.bias)`` becomes the layer ``conv`` again.

The export front end, and layers that subclass a ``torch.nn`` class with a ``forward`` of their own, show parameters as
``get_attr`` nodes that feed a function. Where all parameters of one such call belong to one module of the user's, under
the names that the ``torch.nn`` layer uses, and that module holds nothing else, the layer is put in its place. Names in
the state dict stay, and ``train()``/``eval()`` mean again what they should (batch norm).
"""

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxfuse.passes.graphs import Container, attribute, is_torch_leaf, replace_module
from fxfuse.passes.probing import PROBE, Editor

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CONV_T = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_MISSING = object()


@dataclass(frozen=True, slots=True)
class _Form:
    """A function with parameters: its argument names, which of them are state, and how to build its layer.

    ``build`` takes the arguments by name (state as tensors) and returns the layer on the meta device, or ``None``
    where the layer cannot express the call.
    """

    arguments: tuple[str, ...]
    state: tuple[str, ...]
    build: Callable[[dict[str, Any]], nn.Module | None]


def _options(a: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: a[name] for name in names if a.get(name, _MISSING) is not _MISSING}


def _conv(cls: type[nn.Module]) -> Callable[[dict[str, Any]], nn.Module | None]:
    def build(a: dict[str, Any]) -> nn.Module:
        out, inner, *kernel = a["weight"].shape
        groups = a.get("groups", 1)
        rest = _options(a, "stride", "padding", "dilation")
        return cls(inner * groups, out, kernel, groups=groups, bias=a.get("bias") is not None, device="meta", **rest)

    return build


def _conv_transposed(cls: type[nn.Module]) -> Callable[[dict[str, Any]], nn.Module | None]:
    def build(a: dict[str, Any]) -> nn.Module:
        inner, out, *kernel = a["weight"].shape
        groups = a.get("groups", 1)
        rest = _options(a, "stride", "padding", "dilation", "output_padding")
        return cls(inner, out * groups, kernel, groups=groups, bias=a.get("bias") is not None, device="meta", **rest)

    return build


def _linear(a: dict[str, Any]) -> nn.Module | None:
    if a["weight"].dim() != 2:
        return None
    out, inner = a["weight"].shape
    return nn.Linear(inner, out, bias=a.get("bias") is not None, device="meta")


def _batch_norm(a: dict[str, Any]) -> nn.Module | None:
    tracked = a.get("running_mean") is not None
    training = a.get("training", False)
    rank = a["input"].dim()
    if (tracked and training is not False) or (not tracked and training is not True) or rank > 5:
        return None
    if (a.get("weight") is None) != (a.get("bias") is None):
        return None
    cls = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[rank]
    width = a["input"].shape[1]
    options = _options(a, "momentum", "eps")
    affine = a.get("weight") is not None
    return cls(width, affine=affine, track_running_stats=tracked, device="meta", **options)


def _layer_norm(a: dict[str, Any]) -> nn.Module | None:
    if a.get("weight") is None:
        return None
    bias = a.get("bias") is not None
    return nn.LayerNorm(tuple(a["weight"].shape), bias=bias, device="meta", **_options(a, "eps"))


def _rms_norm(a: dict[str, Any]) -> nn.Module | None:
    if a.get("weight") is None:
        return None
    return nn.RMSNorm(tuple(a["weight"].shape), device="meta", **_options(a, "eps"))


def _group_norm(a: dict[str, Any]) -> nn.Module | None:
    if a.get("weight") is None or a.get("bias") is None:
        return None
    return nn.GroupNorm(a["num_groups"], a["weight"].shape[0], device="meta", **_options(a, "eps"))


def _embedding(a: dict[str, Any]) -> nn.Module | None:
    if a.get("max_norm") is not None or a.get("sparse"):
        return None
    rows, width = a["weight"].shape
    padding = a.get("padding_idx")
    return nn.Embedding(rows, width, padding_idx=None if padding in (None, -1) else padding, device="meta")


def _prelu(a: dict[str, Any]) -> nn.Module | None:
    return nn.PReLU(a["weight"].numel(), device="meta")


_FORMS: dict[Any, _Form] = {
    F.linear: _Form(("input", "weight", "bias"), ("weight", "bias"), _linear),
    F.conv1d: _Form(_CONV, ("weight", "bias"), _conv(nn.Conv1d)),
    F.conv2d: _Form(_CONV, ("weight", "bias"), _conv(nn.Conv2d)),
    F.conv3d: _Form(_CONV, ("weight", "bias"), _conv(nn.Conv3d)),
    F.conv_transpose1d: _Form(_CONV_T, ("weight", "bias"), _conv_transposed(nn.ConvTranspose1d)),
    F.conv_transpose2d: _Form(_CONV_T, ("weight", "bias"), _conv_transposed(nn.ConvTranspose2d)),
    F.conv_transpose3d: _Form(_CONV_T, ("weight", "bias"), _conv_transposed(nn.ConvTranspose3d)),
    F.batch_norm: _Form(
        ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
        ("running_mean", "running_var", "weight", "bias"),
        _batch_norm,
    ),
    F.layer_norm: _Form(("input", "normalized_shape", "weight", "bias", "eps"), ("weight", "bias"), _layer_norm),
    F.rms_norm: _Form(("input", "normalized_shape", "weight", "eps"), ("weight",), _rms_norm),
    F.group_norm: _Form(("input", "num_groups", "weight", "bias", "eps"), ("weight", "bias"), _group_norm),
    F.embedding: _Form(
        ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
        ("weight",),
        _embedding,
    ),
    F.prelu: _Form(("input", "weight"), ("weight",), _prelu),
}


def restore_layers(module: fx.GraphModule) -> int:
    """Replace functional calls by the ``torch.nn`` layers whose parameters they use."""
    edit = Editor(module)
    owners = _owners(module)
    configured: dict[str, str] = {}
    changes = 0
    for node in list(module.graph.nodes):
        form = _FORMS.get(node.target) if node.op == "call_function" else None
        if form is None:
            continue
        named = dict(zip(form.arguments, node.args, strict=False)) | dict(node.kwargs)
        path = _restore(module, form, named, owners, configured)
        if path is None:
            continue
        with edit.at(node):
            layer = edit.leaf(path, named["input"])
        node.replace_all_uses_with(layer)
        module.graph.erase_node(node)
        changes += 1
    return changes


def _owners(module: nn.Module) -> dict[int, list[str]]:
    """Paths of all modules that hold a tensor, by the tensor's identity."""
    found: dict[int, list[str]] = {}
    for path, owner in module.named_modules(remove_duplicate=False):
        for value in (*owner._parameters.values(), *owner._buffers.values()):
            if value is not None and path:
                found.setdefault(id(value), []).append(path)
    return found


def _restore(
    module: fx.GraphModule,
    form: _Form,
    named: dict[str, Any],
    owners: dict[int, list[str]],
    configured: dict[str, str],
) -> str | None:
    """The path at which the layer of this call stands, after putting it there; ``None`` if there is none."""
    state: dict[str, Tensor] = {}
    for name in form.state:
        value = named.get(name)
        if value is None:
            continue
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            return None
        state[name] = attribute(module, str(value.target))
    if not state or not isinstance(named.get("input"), fx.Node):
        return None
    known = {k: v for k, v in named.items() if k not in form.state} | dict.fromkeys(form.state) | state
    known["input"] = named["input"].meta[PROBE][0]
    if any(isinstance(v, fx.Node) for k, v in known.items() if k != "normalized_shape"):
        return None
    layer = form.build(known)
    if layer is None:
        return None
    for path in _candidates(state, owners):
        owner = module.get_submodule(path)
        if configured.get(path, repr(layer)) == repr(layer) and _fits(owner, layer, state):
            configured[path] = repr(layer)
            if not _is_that(owner, layer):
                _adopt(owner, layer)
                replace_module(module, path, layer)
            return path
    return None


def _candidates(state: dict[str, Tensor], owners: dict[int, list[str]]) -> Iterator[str]:
    first, *rest = state.values()
    for path in owners.get(id(first), []):
        if all(path in owners.get(id(value), []) for value in rest):
            yield path


def _fits(owner: nn.Module, layer: nn.Module, state: dict[str, Tensor]) -> bool:
    """Whether ``owner`` holds exactly the layer's state, each tensor under the layer's name for it."""
    if owner._modules or not (isinstance(owner, Container) or is_torch_leaf(owner)):
        return False
    if is_torch_leaf(owner) and not _is_that(owner, layer):
        return False
    for mine, its in ((owner._parameters, layer._parameters), (owner._buffers, layer._buffers)):
        held = {k: v for k, v in mine.items() if v is not None and k != "num_batches_tracked"}
        used = {k for k, v in its.items() if v is not None and k != "num_batches_tracked"}
        if set(held) != used or any(held[k] is not state.get(k) for k in used):
            return False
        if any(held[k].shape != its[k].shape for k in used):  # type: ignore[union-attr]  # entries in `used` are tensors
            return False
    return True


def _is_that(owner: nn.Module, layer: nn.Module) -> bool:
    same_class = isinstance(owner, (type(layer), nn.modules.batchnorm._BatchNorm))
    return same_class and is_torch_leaf(owner) and repr(owner).partition("(")[2] == repr(layer).partition("(")[2]


def _adopt(owner: nn.Module, layer: nn.Module) -> None:
    for name in layer._parameters:
        layer._parameters[name] = owner._parameters.get(name)
    for name in list(layer._buffers):
        if owner._buffers.get(name) is None:
            layer._buffers[name] = None  # a norm without a counter keeps having none
        else:
            layer.register_buffer(name, owner._buffers[name], persistent=name not in owner._non_persistent_buffers_set)
    layer.train(owner.training)


_RECURRENT = {
    torch.ops.aten.lstm.input: nn.LSTM,
    torch.ops.aten.gru.input: nn.GRU,
    torch.ops.aten.rnn_tanh.input: nn.RNN,
    torch.ops.aten.rnn_relu.input: nn.RNN,
}


def restore_recurrent(module: fx.GraphModule) -> int:
    """Replace aten's recurrent operators by the layers whose weights they use."""
    edit = Editor(module)
    changes = 0
    for node in list(module.graph.nodes):
        cls = _RECURRENT.get(node.target) if node.op == "call_function" else None
        if cls is None:
            continue
        x, states, weights = node.args[:3]
        path = str(weights[0].target).rpartition(".")[0]
        layer = module.get_submodule(path)
        names = [str(w.target).removeprefix(f"{path}.") for w in weights]
        if not isinstance(layer, cls) or layer._flat_weights_names != names:
            continue
        with edit.at(node):
            result = edit.leaf(path, x, tuple(states) if cls is nn.LSTM else states)
            output, state = (edit.call(operator.getitem, result, i) for i in (0, 1))
            items = [output, state]
            if cls is nn.LSTM:
                items = [output, *(edit.call(operator.getitem, state, i) for i in (0, 1))]
        for user in list(node.users):
            user.replace_all_uses_with(items[user.args[1]])
            module.graph.erase_node(user)
        module.graph.erase_node(node)
        changes += 1
    return changes


_ZEROS = frozenset({torch.zeros, torch.zeros_like})


def drop_zero_states(module: fx.GraphModule) -> int:
    """Call recurrent layers without an initial state where it is all zeros, which is their default at any width."""
    changes = 0
    for node in module.graph.nodes:
        if node.op != "call_module" or not isinstance(module.get_submodule(str(node.target)), nn.RNNBase):
            continue
        state = node.args[1] if len(node.args) > 1 else node.kwargs.get("hx")
        parts = state if isinstance(state, tuple | list) else (state,)
        if state is not None and all(isinstance(p, fx.Node) and _is_zero(p) for p in parts):
            node.args, node.kwargs = node.args[:1], {}
            changes += 1
    return changes


def _is_zero(node: fx.Node) -> bool:
    return node.target in _ZEROS or node.target == "new_zeros"
