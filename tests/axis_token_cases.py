# ruff: noqa: ARG005  every body takes the network and the hidden value, whether it needs both or not
"""Cases of the law, on sequences of tokens: (name, free spaces expected, network, input).

Spaces are written by size, nested ones as ``owners*size``. ``n`` is the network, ``h`` a hidden value of width 8.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from axis_nets import Net, tensor
from torch import Tensor, nn

Body = Callable[..., Any]
CASES: dict[str, tuple[str, Callable[[], Net], Tensor]] = {}
L, C = nn.Linear, nn.Conv2d


def tokens(name: str, expected: str, body: Body, **parts: Any) -> None:
    """Between two linear layers, on six tokens."""

    def make() -> Net:
        return Net(lambda n, x: n.b(body(n, n.a(x))), a=L(5, 8), b=L(8, 3), **parts)

    CASES[name] = expected, make, tensor(6, 5)


def attn3hd(n, h):
    q = n.q(h).reshape(-1, 6, 3, 2, 4).permute(2, 0, 3, 1, 4)
    return n.o(F.scaled_dot_product_attention(q[0], q[1], q[2]).transpose(1, 2).reshape(-1, 6, 8))


def attnhd3(n, h):
    q = n.q(h).reshape(-1, 6, 2, 12)
    q, k, v = q.split(4, -1)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return n.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 6, 8))


def attnroll(n, h):
    q = n.q(h).reshape(-1, 6, 3, 2, 4).roll(1, 2).permute(2, 0, 3, 1, 4)
    return n.o(F.scaled_dot_product_attention(q[0], q[1], q[2]).transpose(1, 2).reshape(-1, 6, 8))


def headsoftmax(n, h):
    v = n.q(h).reshape(-1, 6, 2, 4).softmax(2)
    return n.o(v.flatten(2))


tokens("qkv 3hd", "8 2 2*4 2*4 8", attn3hd, q=L(8, 24), o=L(8, 8))
tokens("qkv hd3 neox", "8 2 2*4 2*4 8", attnhd3, q=L(8, 24), o=L(8, 8))
tokens("head softmax", "8 2 4 8", headsoftmax, q=L(8, 8), o=L(8, 8))
tokens("head flip", "8 4 8", lambda n, h: n.o(n.q(h).reshape(-1, 6, 2, 4).flip(2).flatten(2)), q=L(8, 8), o=L(8, 8))
tokens("head cumsum", "8 4 8", lambda n, h: n.o(n.q(h).reshape(-1, 6, 2, 4).cumsum(2).flatten(2)), q=L(8, 8), o=L(8, 8))
tokens(
    "head mix",
    "8 2 4 2 8",
    lambda n, h: n.o(n.m(n.q(h).reshape(-1, 6, 2, 4).transpose(2, 3)).flatten(2)),
    q=L(8, 8),
    o=L(8, 8),
    m=L(2, 2),
)


def gqa(kind):
    def f(n, h):
        q = n.q(h).view(-1, 6, 4, 4).transpose(1, 2)
        k = n.k(h).view(-1, 6, 2, 4).transpose(1, 2)
        v = n.v(h).view(-1, 6, 2, 4).transpose(1, 2)
        if kind == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        if kind == "ri":
            y = F.scaled_dot_product_attention(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))
        if kind == "ex":
            k, v = (t[:, :, None].expand(-1, 2, 2, 6, 4).reshape(-1, 4, 6, 4) for t in (k, v))
            y = F.scaled_dot_product_attention(q, k, v)
        return n.o(y.transpose(1, 2).reshape(-1, 6, 16))

    return f


for k in ("sdpa", "ri", "ex"):
    tokens("gqa " + k, "8 2 2*2 2*4 2*4 8", gqa(k), q=L(8, 16), k=L(8, 8), v=L(8, 8), o=L(16, 8))


def rope(half):
    def f(n, h):
        q = n.q(h).view(-1, 6, 2, 4).transpose(1, 2)
        k = n.k(h).view(-1, 6, 2, 4).transpose(1, 2)
        v = n.v(h).view(-1, 6, 2, 4).transpose(1, 2)

        def rot(t):
            if half:
                a, b = t[..., :2], t[..., 2:]
                r = torch.cat([-b, a], -1)
            else:
                a, b = t[..., ::2], t[..., 1::2]
                r = torch.stack([-b, a], -1).flatten(-2)
            return t * n.cos + r * n.sin

        y = F.scaled_dot_product_attention(rot(q), rot(k), v)
        return n.o(y.transpose(1, 2).reshape(-1, 6, 8))

    return f


tokens(
    "rope half",
    "8 2 2 2*4 8",
    rope(True),
    q=L(8, 8),
    k=L(8, 8),
    v=L(8, 8),
    o=L(8, 8),
    cos=torch.randn(6, 4),
    sin=torch.randn(6, 4),
)
tokens(
    "rope inter",
    "8 2 2 2*4 8",
    rope(False),
    q=L(8, 8),
    k=L(8, 8),
    v=L(8, 8),
    o=L(8, 8),
    cos=torch.randn(6, 4),
    sin=torch.randn(6, 4),
)
tokens(
    "alibi",
    "8 2 2*4 2*4 8",
    lambda n, h: (
        lambda q: n.o(
            F.scaled_dot_product_attention(
                q[:, :, 0].transpose(1, 2), q[:, :, 1].transpose(1, 2), q[:, :, 2].transpose(1, 2), attn_mask=n.s
            )
            .transpose(1, 2)
            .reshape(-1, 6, 8)
        )
    )(n.q(h).view(-1, 6, 3, 2, 4)),
    q=L(8, 24),
    o=L(8, 8),
    s=torch.arange(2.0).view(2, 1, 1) * torch.randn(6, 6),
)
tokens(
    "mha",
    "8 2 2*4 2*4 8",
    lambda n, h: n.m(h, h, h, need_weights=False)[0],
    m=nn.MultiheadAttention(8, 2, batch_first=True),
)


def rel(n, h):
    q, k, v = (t.transpose(1, 2) for t in (n.q(h).view(-1, 6, 3, 2, 4)[:, :, i] for i in range(3)))
    bias = n.t[n.i.view(-1)].view(6, 6, 2).permute(2, 0, 1)
    return n.o(((q @ k.transpose(-1, -2) + bias).softmax(-1) @ v).transpose(1, 2).reshape(-1, 6, 8))


tokens(
    "relative bias",
    "2 8 2*4 2*4 8",
    rel,
    q=L(8, 24),
    o=L(8, 8),
    t=(11, 2),
    i=(torch.arange(6)[:, None] - torch.arange(6)[None] + 5),
)


def ch_gram(n, h):
    t = n.q(h).view(-1, 6, 2, 4).permute(0, 2, 3, 1)
    return n.o(((t @ t.transpose(-1, -2)).softmax(-1) @ t).permute(0, 3, 1, 2).reshape(-1, 6, 8))


tokens("xxT owner twice", "8 2 2*4 8", ch_gram, q=L(8, 8), o=L(8, 8))
tokens(
    "headgram",
    "8 2 4 8",
    lambda n, h: (lambda t: n.o((t @ t.transpose(-1, -2) @ t).reshape(-1, 6, 8)))(n.q(h).view(-1, 6, 2, 4)),
    q=L(8, 8),
    o=L(8, 8),
)
tokens(
    "tokens attn over heads",
    "8 2 4 8",
    lambda n, h: (lambda t: n.o(F.scaled_dot_product_attention(t, t.sin(), t.cos()).reshape(-1, 6, 8)))(
        n.q(h).view(-1, 6, 2, 4)
    ),
    q=L(8, 8),
    o=L(8, 8),
)
tokens("lstm", "8 8", lambda n, h: n.l(h)[0], l=nn.LSTM(8, 8, batch_first=True))
tokens(
    "lstm bi 2",
    "8 8 8 8 8 8",
    lambda n, h: n.c(n.l(h)[0]),
    l=nn.LSTM(8, 8, 2, batch_first=True, bidirectional=True),
    c=L(16, 8),
)
tokens(
    "lstm hn",
    "8 8 8 8 8 8",
    lambda n, h: (lambda s: n.c(s[0].transpose(0, 1).flatten(1)))(n.l(h)[1]),
    l=nn.LSTM(8, 8, 2, batch_first=True, bidirectional=True),
    c=L(32, 8),
)
tokens("gru hn sum", "8 8", lambda n, h: (lambda s: s.sum(0))(n.l(h)[1]), l=nn.GRU(8, 8, 2, batch_first=True))
tokens("gru hn last", "8 8 8", lambda n, h: (lambda s: s[-1])(n.l(h)[1]), l=nn.GRU(8, 8, 2, batch_first=True))
tokens(
    "gru hn flip",
    "8 8 8",
    lambda n, h: (lambda s: n.c(s.flip(0).transpose(0, 1).flatten(1)))(n.l(h)[1]),
    l=nn.GRU(8, 8, 2, batch_first=True),
    c=L(16, 8),
)
tokens(
    "gru h0 linear nobias",
    "8 6 8",
    lambda n, h: n.d(n.l(h, n.e(h[:, 0]).unsqueeze(0))[0]),
    l=nn.GRU(8, 6, 1, batch_first=True),
    e=L(8, 6, bias=False),
    d=L(6, 8),
)
tokens(
    "gru h0 param",
    "6 8 8",
    lambda n, h: n.d(n.l(h, n.h0.expand(2, h.shape[0], 6).contiguous())[0]),
    l=nn.GRU(8, 6, 2, batch_first=True),
    h0=(2, 1, 6),
    d=L(6, 8),
)
tokens(
    "gru enc dec",
    "8 6 6 8",
    lambda n, h: n.d(n.l2(h, n.l(h)[1])[0]),
    l=nn.GRU(8, 6, 2, batch_first=True),
    l2=nn.GRU(8, 6, 2, batch_first=True),
    d=L(6, 8),
)
tokens(
    "lstm proj", "8 6 4 8", lambda n, h: n.d(n.l(h)[0]), l=nn.LSTM(8, 6, 1, batch_first=True, proj_size=4), d=L(4, 8)
)
tokens("grucell", "8", lambda n, h: n.l(h[:, 0], n.l(h[:, 1], h[:, 2])), l=nn.GRUCell(8, 8))
tokens("lstmcell", "8", lambda n, h: n.l(h[:, 0], (h[:, 1], h[:, 2]))[0], l=nn.LSTMCell(8, 8))
tokens(
    "hn cn outer",
    "8 6 6 8",
    lambda n, h: (lambda s: n.c((s[0].unsqueeze(-1) * s[1].unsqueeze(-2))[1].flatten(1)))(n.l(h)[1]),
    l=nn.LSTM(8, 6, 2, batch_first=True),
    c=L(36, 8),
)
tokens("table by sign", "4 8 8", lambda n, h: n.o(n.t[(h > 0).long()].sum(-1)), t=(2, 4), o=L(8, 8))
tokens("gather self", "8", lambda n, h: h.gather(-1, h.argsort(-1)))
tokens("index neurons", "", lambda n, h: h[..., n.i], i=torch.tensor([3, 1, 2, 0, 4, 5, 7, 6]))
tokens("position mixing", "8", lambda n, h: n.m(h.transpose(1, 2)).transpose(1, 2), m=L(6, 6))
tokens("conv over tokens", "8 8", lambda n, h: n.m(h.transpose(1, 2)).transpose(1, 2), m=nn.Conv1d(8, 8, 3, padding=1))
tokens("in place like", "4 4", lambda n, h: torch.slice_scatter(h, h[:, :, :4].relu(), 2, 0, 4))
tokens("in place step", "", lambda n, h: torch.slice_scatter(h, h[:, :, ::2].relu(), 2, 0, 8, 2))
tokens("in place step pos", "8", lambda n, h: torch.slice_scatter(h, n.q(h)[:, ::2].relu(), 1, 0, 6, 2), q=L(8, 8))
tokens(
    "complex rope",
    "4",
    lambda n, h: torch.view_as_real(torch.view_as_complex(h.reshape(-1, 6, 4, 2)) * n.f).flatten(2),
    f=torch.polar(torch.ones(6, 4), torch.randn(6, 4)),
)
tokens("cumsum pos", "8", lambda n, h: h.cumsum(1))
tokens("weight norm", "8 8", lambda n, h: n.l(h), l=nn.utils.parametrizations.weight_norm(L(8, 8)))
tokens("spectral", "8 8", lambda n, h: n.l(h), l=nn.utils.parametrizations.spectral_norm(L(8, 8)))
tokens("tied emb", "8", lambda n, h: F.linear(n.q(h), n.q.weight), q=L(8, 8))
tokens(
    "moe einsum",
    "4 8 8",
    lambda n, h: torch.einsum("btei,bte->bti", torch.einsum("btd,edi->btei", h, n.w), n.g(h).softmax(-1)),
    w=(4, 8, 8),
    g=L(8, 4),
)
tokens(
    "kron param",
    "2 4 8",
    lambda n, h: F.linear(h, (n.u.unsqueeze(1) * n.v.unsqueeze(0)).flatten(0, 1).unsqueeze(1) * n.w),
    u=(2,),
    v=(4,),
    w=(8, 8),
)
tokens("lora", "8 8 2", lambda n, h: F.linear(h, n.w + n.u @ n.v), w=(8, 8), u=(8, 2), v=(2, 8))
tokens(
    "hyper", "8 8", lambda n, h: torch.bmm(n.g(h[:, 0]).view(-1, 8, 8), h.transpose(1, 2)).transpose(1, 2), g=L(8, 64)
)
tokens(
    "cat heads",
    "8 4 4 4 4 8",
    lambda n, h: n.o(
        torch.cat(
            [
                torch.softmax(n.q(h)[..., i * 4 : i * 4 + 4] @ n.k(h)[..., i * 4 : i * 4 + 4].transpose(1, 2), -1)
                @ n.v(h)[..., i * 4 : i * 4 + 4]
                for i in range(2)
            ],
            -1,
        )
    ),
    q=L(8, 8),
    k=L(8, 8),
    v=L(8, 8),
    o=L(8, 8),
)
tokens("glu", "8 8", lambda n, h: F.glu(n.q(h)), q=L(8, 16))
tokens("renorm", "8", lambda n, h: h.renorm(2, 0, 1.0))
tokens("addcmul", "8", lambda n, h: torch.addcmul(h, h, n.s, value=2), s=(8,))
tokens("batch baddbmm", "8", lambda n, h: torch.baddbmm(torch.zeros(1, 1, 1), h, h.transpose(1, 2)) @ h)
tokens("tensordot", "8 8", lambda n, h: torch.tensordot(h, n.w, dims=([2], [1])), w=(8, 8))
tokens(
    "chain matmul", "8 8", lambda n, h: torch.linalg.multi_dot([h[0], n.w, n.w2]).unsqueeze(0) + h, w=(8, 8), w2=(8, 8)
)
tokens("tril mask", "8", lambda n, h: (h @ h.transpose(1, 2)).tril().softmax(-1) @ h)
tokens(
    "masked causal",
    "8",
    lambda n, h: (h @ h.transpose(1, 2)).masked_fill(torch.ones(6, 6).triu(1).bool(), -9).softmax(-1) @ h,
)
tokens("logcumsumexp", "", lambda n, h: h.logcumsumexp(-1))
tokens(
    "einops-like",
    "8 2 2*4 2*4 8",
    lambda n, h: (
        lambda q: n.o(
            torch.einsum(
                "bhij,bjhd->bihd", torch.einsum("bihd,bjhd->bhij", q[:, :, 0], q[:, :, 1]).softmax(-1), q[:, :, 2]
            ).flatten(2)
        )
    )(n.q(h).unflatten(-1, (3, 2, 4))),
    q=L(8, 24),
    o=L(8, 8),
)


def per_head(n: Net, h: Tensor, weight: Tensor) -> Tensor:
    """A weight of its own for every head: ``q[h, i] W[h, i, j]``."""
    q = n.q(h).view(-1, 6, 2, 4).transpose(1, 2)
    return n.o((q @ weight).transpose(1, 2).flatten(2))


tokens("weight per head", "2 2*4 2*4 8 8", lambda n, h: per_head(n, h, n.w), q=L(8, 8), o=L(8, 8), w=(2, 4, 4))
tokens(
    "weight per head, softmax over heads",
    "2 4 4 8 8",
    lambda n, h: per_head(n, h, n.w.softmax(0)),
    q=L(8, 8),
    o=L(8, 8),
    w=(2, 4, 4),
)
tokens(
    "weight per head and the products of heads",
    "2 4 4 8 8",
    lambda n, h: per_head(n, h, n.w) * torch.einsum("hrx,krx->hk", n.w, n.w).square().sum(),
    q=L(8, 8),
    o=L(8, 8),
    w=(2, 4, 4),
)


def experts(n: Net, h: Tensor) -> Tensor:
    """Every expert has hidden neurons of its own."""
    hidden = torch.einsum("btd,edi->btei", h, n.u).relu()
    return (torch.einsum("btei,eid->bted", hidden, n.w) * n.g(h).softmax(-1).unsqueeze(-1)).sum(2)


tokens("mixture of experts", "3 8 3*5 8", experts, u=(3, 8, 5), w=(3, 5, 8), g=L(8, 3))
