"""Operators that have no ONNX form, or are misread in it, in other operators; before torch's exporter sees them.

Adaptive average pooling in three dimensions is separable: output ``i`` of ``m`` along a dimension of ``n`` entries is
the mean over ``floor(i n / m) .. ceil((i + 1) n / m)``. Distances between all rows are the norms of all differences.
ONNX's LSTM has no projection: such a network is unrolled over time by torch's own decomposition, for the sequence
length that it was traced with. Experts that each take a run of rows take all rows, of which those of their run are
kept: as many times the work as there are experts.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import get_decompositions
from torch.export import ExportedProgram

_aten = torch.ops.aten


def adaptive_average(x: Tensor, size: Sequence[int]) -> Tensor:
    """``x`` averaged down to ``size`` along its last dimensions, whose own sizes are fixed."""
    for dim, count in enumerate(size, -len(size)):
        own = x.shape[dim]
        if count == own:
            continue
        spans = [(i * own // count, -((i + 1) * own // -count)) for i in range(count)]
        x = torch.cat([x.narrow(dim, a, b - a).mean(dim, keepdim=True) for a, b in spans], dim)
    return x


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``torch.nn.functional.scaled_dot_product_attention`` in evaluation, from products and a softmax; any number of
    leading dimensions, of which the exporter knows two."""
    del dropout_p
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        allowed = attn_mask.dtype == torch.bool
        scores = torch.where(attn_mask, scores, float("-inf")) if allowed else scores + attn_mask
    return scores.softmax(-1) @ value


def distances(a: Tensor, b: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    """``torch.cdist``: the p-norms of all differences of a row of ``a`` and a row of ``b``."""
    del compute_mode
    apart = (a.unsqueeze(-2) - b.unsqueeze(-3)).abs()
    if p == 2:
        return apart.square().sum(-1).sqrt()
    if p == 0:
        return (apart != 0).to(apart.dtype).sum(-1)
    return apart.amax(-1) if p == float("inf") else apart.pow(p).sum(-1).pow(1 / p)


def runs(x: Tensor, weight: Tensor, offs: Tensor, bias: Tensor | None = None, out_dtype: Any = None) -> Tensor:
    """``torch._grouped_mm`` of ``x`` (``S x K``), cut into runs that end at ``offs``, and a matrix for each
    (``E x K x N``); zero behind the last run."""
    run = (torch.arange(x.shape[0], device=x.device)[:, None] >= offs).sum(-1)
    own = run == torch.arange(weight.shape[0], device=x.device)[:, None]
    found = torch.where(own[:, :, None], x @ weight, 0.0).sum(0)
    found = found if bias is None else found + bias
    return found if out_dtype is None else found.to(out_dtype)


def _other_than_4d(node: fx.Node) -> bool:
    query = node.args[0]
    assert isinstance(query, fx.Node)
    return bool(query.meta["val"].ndim != 4)


def _projected(node: fx.Node) -> bool:
    parameters, biases, layers, both_ways = node.args[2], node.args[3], node.args[4], node.args[7]
    assert isinstance(parameters, Sequence)
    assert isinstance(layers, int)
    return len(parameters) > layers * (2 if both_ways else 1) * (4 if biases else 2)


def _in_runs(node: fx.Node) -> bool:
    x, weight = node.args[:2]
    assert isinstance(x, fx.Node)
    assert isinstance(weight, fx.Node)
    return (x.meta["val"].ndim, weight.meta["val"].ndim) == (2, 3)


def _always(node: fx.Node) -> bool:
    del node
    return True


FORMS: dict[str, tuple[Callable[[fx.Node], bool], Callable[..., Any]]] = {
    "aten.adaptive_avg_pool3d.default": (_always, adaptive_average),
    "aten._adaptive_avg_pool3d.default": (_always, adaptive_average),
    "aten.scaled_dot_product_attention.default": (_other_than_4d, attention),
    "aten.cdist.default": (_always, distances),
    "aten._cdist_forward.default": (_always, distances),
    "aten.lstm.input": (_projected, get_decompositions([_aten.lstm.input])[_aten.lstm.input]),
    "aten._grouped_mm.default": (_in_runs, runs),
    "transformers.grouped_mm_fallback.default": (_in_runs, runs),
}
"""For an operator: which of its nodes have no ONNX form, and what computes the same."""


def with_forms(program: ExportedProgram) -> ExportedProgram:
    """The program with such operators spelt out; the very same where it has none."""
    needed = {
        node.target: FORMS[str(node.target)][1]
        for node in program.graph.nodes
        if str(node.target) in FORMS and FORMS[str(node.target)][0](node)
    }
    return program.run_decompositions(needed) if needed else program


@contextlib.contextmanager
def respelled(program: ExportedProgram) -> Iterator[None]:
    """Inside, nodes that would be misread have one more before them, which leaves their values as they are.

    A view of what attention returns is legal in the layout of torch's own kernel, with which it was traced; operators
    that ONNX is written in lay the same values out otherwise. It is made a view of a copy: ONNX itself has no layouts,
    and the copy vanishes. Padding before a maximum is taken for the maximum's own by onnxruntime's optimiser, whatever
    is padded with; a lower bound that bounds nothing keeps them apart.
    """
    graph = program.graph
    edits = [(node, made) for node in graph.nodes if (made := _keeper(node)) is not None]
    for node, (target, args, kwargs) in edits:
        source = node.args[0]
        with graph.inserting_before(node):
            between = graph.call_function(target, (source, *args), kwargs)
            between.meta.update(source.meta)
        node.replace_input_with(source, between)
    try:
        yield
    finally:
        for node, _ in edits:
            between = node.args[0]
            node.replace_input_with(between, between.args[0])
            graph.erase_node(between)


_TURNED = {_aten.transpose.int, _aten.permute.default}
_SPLIT = {_aten.view.default, _aten.reshape.default}
_PADDED = {_aten.constant_pad_nd.default, _aten.pad.default}
_LARGEST = {op.default for op in (_aten.max_pool1d, _aten.max_pool2d, _aten.max_pool3d)}
_LARGEST |= {op.default for op in (_aten.max_pool2d_with_indices, _aten.max_pool3d_with_indices)}


def _keeper(node: fx.Node) -> tuple[Any, tuple[Any, ...], dict[str, Any]] | None:
    """What has to stand before a node: an operator, and its arguments after the first."""
    source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    if source is None:
        return None
    if node.target in _SPLIT and source.target in _TURNED:
        return _aten.clone.default, (), {"memory_format": torch.contiguous_format}
    if node.target in _LARGEST and source.target in _PADDED and (kind := source.meta["val"].dtype).is_floating_point:
        return _aten.clamp.default, (torch.finfo(kind).min,), {}
    return None
