"""Attention and transformers are written out, with every option."""

import pytest
import torch
import torch.nn.functional as F
from normalized import kinds, targets, traced
from torch import nn

from fxfuse.passes.checking import difference, plain

ATTENTION = {
    "plain": ({}, {}),
    "sequence first": ({"batch_first": False}, {}),
    "no bias": ({"bias": False}, {}),
    "other widths": ({"kdim": 6, "vdim": 10}, {}),
    "extra keys": ({"add_bias_kv": True, "add_zero_attn": True}, {}),
    "masks": ({}, {"attn_mask": torch.ones(5, 5).triu(1).bool(), "padded": True}),
    "float mask": ({"add_zero_attn": True}, {"attn_mask": torch.randn(5, 5)}),
    "bool mask": ({"add_bias_kv": True}, {"attn_mask": torch.ones(5, 5).triu(1).bool()}),
    "weights": ({}, {"need_weights": True}),
    "weights per head": ({}, {"need_weights": True, "average_attn_weights": False}),
}


@pytest.mark.parametrize("case", ATTENTION)
def test_attention_is_open_with_every_option(case):
    layer, call = ATTENTION[case]
    m = nn.MultiheadAttention(8, 2, **({"batch_first": True} | layer))
    call = {"need_weights": False} | call
    padded = call.pop("padded", False)

    def forward(self, x, k, v):
        mask = k[..., 0] > 0 if padded else None
        if not m.batch_first:
            x, k, v = x.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        y, w = self.m(x, k, v, key_padding_mask=mask, **call)
        y = y if m.batch_first else y.transpose(0, 1)
        return y if w is None else (y, w)

    inputs = [torch.randn(4, 5, d) for d in (8, layer.get("kdim", 8), layer.get("vdim", 8))]
    model, module = traced(forward, *inputs, state={"m": m})
    assert F.scaled_dot_product_attention in targets(module)
    assert nn.MultiheadAttention not in kinds(module)
    with torch.no_grad():
        assert difference(plain(model(*inputs)), plain(module(*inputs)))[0] < 1e-5


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")  # of nn.Transformer's own default
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_transformers_are_open(norm_first, activation):
    m = nn.Transformer(8, 2, 2, 2, 16, batch_first=True, norm_first=norm_first, activation=activation)
    mask = nn.Transformer.generate_square_subsequent_mask(4)
    model, module = traced(
        lambda self, s, t: self.m(s, t, tgt_mask=mask, tgt_is_causal=True), torch.randn(2, 5, 8), torch.randn(2, 4, 8),
        state={"m": m},
    )  # fmt: skip
    assert all(issubclass(kind, nn.Linear | nn.LayerNorm) for kind in kinds(module))
    assert list(module.state_dict()) == list(model.state_dict())
