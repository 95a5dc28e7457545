"""Composite ``torch.nn`` layers written out in tensor operations, so that a graph shows what is inside.

With ``E`` the width, ``h`` heads of width ``d = E / h``, ``L`` target and ``S`` source positions, attention is

    ``q, k, v = x W_q + b_q, ...``;  ``softmax(q k^T / sqrt(d) + mask) v``;  out-projection,

with ``q: (B, h, L, d)`` and ``k, v: (B, h, S, d)``. Head counts are written as numbers, head widths as ``-1``.
Each function takes the layer and its arguments and is traced in its place. Evaluation mode: no dropout.
"""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attention(
    m: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,  # noqa: ARG001  # a hint that repeats the mask
) -> tuple[Tensor, Tensor | None]:
    """``nn.MultiheadAttention.forward``, with every option of the layer and the call."""
    batched = query.ndim == 3
    if not batched and key_padding_mask is not None:
        key_padding_mask = key_padding_mask.unsqueeze(0)
    q, k, v = _project(m, *_batch_first(m, query, key, value))
    extra = 0
    if m.bias_k is not None and m.bias_v is not None:
        k, v = (torch.cat([x, b.expand(x.shape[0], -1, -1)], 1) for x, b in ((k, m.bias_k), (v, m.bias_v)))
        extra += 1
    q, k, v = (torch.unflatten(x, 2, (m.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    if m.add_zero_attn:
        k, v = (torch.cat([x, torch.zeros_like(x[:, :, :1])], 2) for x in (k, v))
        extra += 1
    mask = _mask(m, q, attn_mask, key_padding_mask, extra)
    y = F.scaled_dot_product_attention(q, k, v, mask)
    y = m.out_proj(y.transpose(1, 2).flatten(2))
    weights = None
    if need_weights:
        scores = q @ k.transpose(-2, -1) / math.sqrt(m.head_dim)
        weights = F.softmax(scores if mask is None else scores + mask, dim=-1)
        weights = weights.mean(1) if average_attn_weights else weights
        weights = weights if batched else weights.squeeze(0)
    if not batched:
        return y.squeeze(0), weights
    return (y if m.batch_first else y.transpose(0, 1)), weights


def functional_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,  # noqa: ARG001
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,  # noqa: ARG001
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,  # noqa: ARG001  # a hint that repeats the mask
    **_: Any,
) -> tuple[Tensor, Tensor | None]:
    """``F.multi_head_attention_forward`` without static keys and values: the layer's computation on given weights."""
    m = SimpleNamespace(
        num_heads=num_heads,
        head_dim=embed_dim_to_check // num_heads,
        batch_first=False,
        bias_k=bias_k,
        bias_v=bias_v,
        add_zero_attn=add_zero_attn,
        in_proj_weight=in_proj_weight,
        in_proj_bias=in_proj_bias,
        _qkv_same_embed_dim=not use_separate_proj_weight,
        q_proj_weight=q_proj_weight,
        k_proj_weight=k_proj_weight,
        v_proj_weight=v_proj_weight,
        out_proj=lambda y: F.linear(y, out_proj_weight, out_proj_bias),
    )
    return attention(
        m,  # type: ignore[arg-type]  # it has what the layer has
        query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights,
    )  # fmt: skip


def _batch_first(m: nn.MultiheadAttention, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Inputs as ``(B, L, E)``; inputs that are one object stay one object."""
    done: dict[int, Tensor] = {}
    for x in inputs:
        if id(x) not in done:
            done[id(x)] = x.unsqueeze(0) if x.ndim == 2 else x if m.batch_first else x.transpose(0, 1)
    return tuple(done[id(x)] for x in inputs)


def _project(m: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    b = m.in_proj_bias
    if not m._qkv_same_embed_dim:
        biases = b.chunk(3) if b is not None else (None, None, None)
        return (
            F.linear(query, m.q_proj_weight, biases[0]),
            F.linear(key, m.k_proj_weight, biases[1]),
            F.linear(value, m.v_proj_weight, biases[2]),
        )
    w = m.in_proj_weight
    if query is key and key is value:
        q, k, v = F.linear(query, w, b).chunk(3, dim=-1)
        return q, k, v
    weights = w.chunk(3)
    biases = b.chunk(3) if b is not None else (None, None, None)
    q, k, v = (F.linear(x, wi, bi) for x, wi, bi in zip((query, key, value), weights, biases, strict=True))
    return q, k, v


def _float_mask(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)
    return mask


def _mask(
    m: nn.MultiheadAttention, q: Tensor, attn_mask: Tensor | None, padding: Tensor | None, extra: int
) -> Tensor | None:
    total: Tensor | None = None
    if attn_mask is not None:
        total = F.pad(_float_mask(attn_mask, q), (0, extra)) if extra else _float_mask(attn_mask, q)
        if attn_mask.ndim == 3:
            total = total.reshape(-1, m.num_heads, total.shape[1], total.shape[2])
    if padding is not None:
        padded = _float_mask(padding, q)
        padded = F.pad(padded, (0, extra)) if extra else padded
        padded = padded.unsqueeze(1).unsqueeze(2)
        total = padded if total is None else total + padded
    return total


def _feed_forward(m: Any, x: Tensor) -> Tensor:
    return m.linear2(m.activation(m.linear1(x)))  # type: ignore[no-any-return]


def encoder_layer(
    m: nn.TransformerEncoderLayer,
    src: Tensor,
    src_mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool = False,  # noqa: ARG001  # a hint that repeats the mask
) -> Tensor:
    """``nn.TransformerEncoderLayer.forward`` without its fast path."""

    def attend(x: Tensor) -> Tensor:
        result: Tensor = m.self_attn(
            x, x, x, attn_mask=src_mask, key_padding_mask=src_key_padding_mask, need_weights=False
        )[0]
        return result

    if m.norm_first:
        x = src + attend(m.norm1(src))
        return x + _feed_forward(m, m.norm2(x))
    x = m.norm1(src + attend(src))
    return m.norm2(x + _feed_forward(m, x))  # type: ignore[no-any-return]


def decoder_layer(
    m: nn.TransformerDecoderLayer,
    tgt: Tensor,
    memory: Tensor,
    tgt_mask: Tensor | None = None,
    memory_mask: Tensor | None = None,
    tgt_key_padding_mask: Tensor | None = None,
    memory_key_padding_mask: Tensor | None = None,
    tgt_is_causal: bool = False,  # noqa: ARG001
    memory_is_causal: bool = False,  # noqa: ARG001  # a hint that repeats the mask
) -> Tensor:
    """``nn.TransformerDecoderLayer.forward``."""

    def own(x: Tensor) -> Tensor:
        y: Tensor = m.self_attn(x, x, x, attn_mask=tgt_mask, key_padding_mask=tgt_key_padding_mask, need_weights=False)[
            0
        ]
        return y

    def cross(x: Tensor) -> Tensor:
        y: Tensor = m.multihead_attn(
            x, memory, memory, attn_mask=memory_mask, key_padding_mask=memory_key_padding_mask, need_weights=False
        )[0]
        return y

    if m.norm_first:
        x = tgt + own(m.norm1(tgt))
        x = x + cross(m.norm2(x))
        return x + _feed_forward(m, m.norm3(x))
    x = m.norm1(tgt + own(tgt))
    x = m.norm2(x + cross(x))
    return m.norm3(x + _feed_forward(m, x))  # type: ignore[no-any-return]


def encoder(
    m: nn.TransformerEncoder,
    src: Tensor,
    mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool | None = None,  # noqa: ARG001  # a hint that repeats the mask
) -> Tensor:
    """``nn.TransformerEncoder.forward`` without nested tensors."""
    x = src
    for layer in m.layers:
        x = layer(x, src_mask=mask, src_key_padding_mask=src_key_padding_mask)
    return m.norm(x) if m.norm is not None else x


def decoder(
    m: nn.TransformerDecoder,
    tgt: Tensor,
    memory: Tensor,
    tgt_mask: Tensor | None = None,
    memory_mask: Tensor | None = None,
    tgt_key_padding_mask: Tensor | None = None,
    memory_key_padding_mask: Tensor | None = None,
    tgt_is_causal: bool | None = None,  # noqa: ARG001
    memory_is_causal: bool = False,  # noqa: ARG001  # a hint that repeats the mask
) -> Tensor:
    """``nn.TransformerDecoder.forward``."""
    x = tgt
    for layer in m.layers:
        x = layer(
            x,
            memory,
            tgt_mask=tgt_mask,
            memory_mask=memory_mask,
            tgt_key_padding_mask=tgt_key_padding_mask,
            memory_key_padding_mask=memory_key_padding_mask,
        )
    return m.norm(x) if m.norm is not None else x


def transformer(
    m: nn.Transformer,
    src: Tensor,
    tgt: Tensor,
    src_mask: Tensor | None = None,
    tgt_mask: Tensor | None = None,
    memory_mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    tgt_key_padding_mask: Tensor | None = None,
    memory_key_padding_mask: Tensor | None = None,
    src_is_causal: bool | None = None,  # noqa: ARG001
    tgt_is_causal: bool | None = None,  # noqa: ARG001
    memory_is_causal: bool = False,  # noqa: ARG001  # a hint that repeats the mask
) -> Tensor:
    """``nn.Transformer.forward``."""
    memory = m.encoder(src, mask=src_mask, src_key_padding_mask=src_key_padding_mask)
    result: Tensor = m.decoder(
        tgt,
        memory,
        tgt_mask=tgt_mask,
        memory_mask=memory_mask,
        tgt_key_padding_mask=tgt_key_padding_mask,
        memory_key_padding_mask=memory_key_padding_mask,
    )
    return result


OPENERS: dict[type[nn.Module], Callable[..., Any]] = {
    nn.MultiheadAttention: attention,
    nn.TransformerEncoderLayer: encoder_layer,
    nn.TransformerDecoderLayer: decoder_layer,
    nn.TransformerEncoder: encoder,
    nn.TransformerDecoder: decoder,
    nn.Transformer: transformer,
}
"""Exact types only: a subclass may have changed ``forward``."""
