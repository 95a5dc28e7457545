# ruff: noqa: ARG005  every body takes the network and the hidden value, whether it needs both or not
"""Cases of the law, on vectors and on maps of channels: (name, free spaces expected, network, input).

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


def hidden(name: str, expected: str, body: Body, **parts: Any) -> None:
    """Between two linear layers."""

    def make() -> Net:
        return Net(lambda n, x: n.b(body(n, n.a(x))), a=L(5, 8), b=L(8, 3), **parts)

    CASES[name] = expected, make, tensor(5)


def channels(name: str, expected: str, body: Body, out: int = 8, **parts: Any) -> None:
    """Between two convolutions."""

    def make() -> Net:
        return Net(lambda n, x: n.b(body(n, n.a(x))), a=C(3, 8, 3, padding=1), b=C(out, 3, 1), **parts)

    CASES[name] = expected, make, tensor(3, 8, 8)


def xcit(n, h):
    q, k, v = n.q(h).reshape(3, 3, 2, 4, 64).unbind(1)
    q = F.normalize(q, dim=-1)
    k = F.normalize(k, dim=-1)
    return n.o(((q @ k.transpose(-2, -1)).softmax(-1) @ v).reshape(3, 8, 8, 8))


hidden("hard batch", "8", lambda n, h: h + n.e(torch.zeros(3, 2).long()).sum(1), e=nn.Embedding(4, 8))
hidden("relu", "8", lambda n, h: F.relu(h))
hidden("softmax", "8", lambda n, h: h.softmax(-1))
hidden("normalize", "8", lambda n, h: F.normalize(h))
hidden("cumsum", "", lambda n, h: h.cumsum(-1))
hidden("flip", "", lambda n, h: h.flip(-1))
hidden("roll", "", lambda n, h: h.roll(1, -1))
hidden("roll flat", "", lambda n, h: h.roll(1))
hidden("sort", "8", lambda n, h: h.sort(-1).values)
hidden("inner", "8 8", lambda n, h: torch.inner(h, n.w), w=(8, 8))
hidden("inner of other widths", "6 8 8", lambda n, h: n.c(torch.inner(h, n.w)), w=(6, 8), c=L(6, 8))
hidden("diff", "8 8", lambda n, h: torch.diff(n.c(h)[..., None], dim=2, prepend=n.w)[..., 0], c=L(8, 8), w=(3, 8, 1))
hidden("diagonal", "8", lambda n, h: (h[:, :, None] * h[:, None]).diagonal(dim1=1, dim2=2))
hidden("other diagonal", "", lambda n, h: F.pad((h[:, :, None] * h[:, None]).diagonal(1, 1, 2), (0, 1)))
hidden("diagonal matrix", "8", lambda n, h: h @ torch.diag(n.w) + h @ torch.diag_embed(n.w), w=(8,))
hidden("diagonal parameter", "", lambda n, h: h * n.w.diagonal(), w=(8, 8))
hidden("einsum diagonal", "8", lambda n, h: torch.einsum("bii->bi", h[:, :, None] * h[:, None]))
hidden(
    "strides of a reshape", "4 4*2 8", lambda n, h: n.c(h.as_strided((h.shape[0], 4, 2), (8, 2, 1)).sum(2)), c=L(4, 8)
)
hidden("strides", "", lambda n, h: h.as_strided((3, 8), (1, 1)))
hidden(
    "written diagonal",
    "8",
    lambda n, h: (torch.diagonal_scatter(h[:, :, None] * h[:, None], n.c(h), 0, 1, 2).softmax(2) * h[:, None]).sum(2),
    c=L(8, 8),
)
hidden(
    "written beside the diagonal",
    "",
    lambda n, h: torch.diagonal_scatter(h[:, :, None] * h[:, None], h[:, 1:], 1, 1, 2).sum(2),
)
hidden("masked scatter", "", lambda n, h: h.masked_scatter(h > 0, h.tanh()))
hidden("singular values", "2 4 8", lambda n, h: n.c(torch.linalg.svdvals(h.view(-1, 2, 4)) + 1), c=L(2, 8))
hidden("triangle", "8", lambda n, h: n.c(torch.linalg.qr(h.view(-1, 4, 2))[1].flatten(1)), c=L(4, 8))
hidden("borders", "8", lambda n, h: h + torch.searchsorted(n.e, h), e=torch.linspace(-1, 1, 4))
hidden("all pairs", "8", lambda n, h: h * F.pdist(h).sum())
hidden("fake quantised", "8", lambda n, h: torch.fake_quantize_per_tensor_affine(h, 0.1, 0, -128, 127))
hidden("largest norm", "8", lambda n, h: h * F.embedding(torch.zeros(1).long(), n.t, max_norm=1.0), t=(3, 8))
hidden("the largest alone", "8", lambda n, h: torch.zeros_like(h).scatter(1, h.topk(3).indices, h.topk(3).values))
hidden("places of another", "8", lambda n, h: h.gather(1, n.c(h).topk(2).indices).sum(1, True) * h, c=L(8, 8))
hidden("places as numbers", "", lambda n, h: h.scatter(1, h.topk(3).indices, h.topk(3).indices.float()))
hidden("codes", "5 8", lambda n, h: F.embedding(torch.cdist(h, n.t).argmin(1), n.t), t=(5, 8))
hidden("code by code", "5 8", lambda n, h: h + F.embedding(torch.cdist(n.t, n.t + 1).argmin(1), n.t).sum(0), t=(5, 8))
hidden("along", "8", lambda n, h: torch.take_along_dim(h[:, None], torch.zeros(3, 2, 1).long(), 1).sum(1))
hidden("stacks", "8", lambda n, h: torch.hstack((h, h))[:, :8] * torch.dstack((h, n.w)).prod(-1), w=(3, 8))
hidden("sort order", "", lambda n, h: h + h.sort(-1).indices)
hidden("kthvalue", "8", lambda n, h: h - h.kthvalue(3, -1, keepdim=True).values)
hidden("kth place", "", lambda n, h: h - h.kthvalue(3, -1, keepdim=True).indices)
hidden("max of pieces", "4 4*2 8", lambda n, h: n.c(h.view(-1, 4, 2).max(-1)[0]), c=L(4, 8))
hidden("place of a maximum", "4 8", lambda n, h: n.c(h.view(-1, 4, 2).max(-1)[1].float()), c=L(4, 8))
hidden("argmax", "", lambda n, h: h + h.argmax(-1, keepdim=True))
hidden("max values", "8", lambda n, h: h - h.amax(-1, keepdim=True))
hidden("median", "8", lambda n, h: h - h.median())
hidden("layer norm", "8", lambda n, h: n.n(h), n=nn.LayerNorm(8))
hidden("rms norm", "8", lambda n, h: n.n(h), n=nn.RMSNorm(8))
hidden("batch norm", "8", lambda n, h: n.n(h), n=nn.BatchNorm1d(8))
hidden(
    "functional batch norm",
    "8",
    lambda n, h: F.batch_norm(h, n.m, n.v, n.w, n.c),
    m=torch.linspace(-1, 1, 8),
    v=torch.linspace(1, 2, 8),
    w=(8,),
    c=(8,),
)
hidden("group norm", "2 2*4", lambda n, h: n.n(h), n=nn.GroupNorm(2, 8))
hidden("prelu", "8", lambda n, h: n.n(h), n=nn.PReLU(8))
hidden("prelu one", "8", lambda n, h: n.n(h), n=nn.PReLU())
hidden("glu", "4", lambda n, h: torch.cat([F.glu(h), F.glu(h)], -1))
hidden("chunk swiglu", "4 8", lambda n, h: n.c(F.silu(h.chunk(2, -1)[0]) * h.chunk(2, -1)[1]), c=L(4, 8))
hidden("halves apart", "4 4", lambda n, h: torch.cat([h[:, :4].relu(), h[:, 4:]], -1))
hidden("even", "4", lambda n, h: torch.cat([h[:, ::2], h[:, 1::2]], -1))
hidden("gather const", "", lambda n, h: h[:, n.i], i=torch.tensor([1, 0, 3, 2, 5, 4, 7, 6]))
hidden("index_select", "", lambda n, h: h.index_select(1, n.i), i=torch.tensor([1, 0, 3, 2, 5, 4, 7, 6]))
hidden("constant buffer scale", "8", lambda n, h: h * n.s, s=torch.linspace(1, 2, 8))
hidden("arange scale", "", lambda n, h: h * torch.arange(8))
hidden("outer rows", "4 2 2", lambda n, h: (h[:, :4].unsqueeze(2) * h[:, 4:6].unsqueeze(1)).flatten(1))
hidden("l2 residual", "8", lambda n, h: h + n.c(h), c=L(8, 8))
hidden("maxout", "4 4*2 8", lambda n, h: n.c(h.view(-1, 4, 2).amax(-1)), c=L(4, 8))
hidden("view weird", "4 4*2 8", lambda n, h: n.c(h.view(h.shape[0], -1, 2).amax(2)), c=L(4, 8))
hidden("outer maxout", "2 2*4 8", lambda n, h: n.c(h.view(-1, 2, 4).amax(-1)), c=L(2, 8))
hidden("minout inner", "2 4 8", lambda n, h: n.c(h.view(-1, 2, 4).amax(1)), c=L(4, 8))
hidden("cosine", "8", lambda n, h: F.cosine_similarity(h, n.c(h)).unsqueeze(1) * h, c=L(8, 8))
hidden("bilinear", "8 8", lambda n, h: n.c(h, h), c=nn.Bilinear(8, 8, 8))
hidden(
    "outer product",
    "8 8 8 8",
    lambda n, h: n.e(torch.einsum("bi,bj->bij", n.c(h), n.d(h)).flatten(1)),
    c=L(8, 8),
    d=L(8, 8),
    e=L(64, 8),
)
hidden(
    "weight std",
    "8 8",
    lambda n, h: F.linear(h, (n.w - n.w.mean(1, keepdim=True)) / n.w.std(1, keepdim=True)),
    w=(8, 8),
)
hidden("tied", "6 8", lambda n, h: F.linear(F.linear(h, n.w), n.w.t()), w=(6, 8))
hidden("self tied", "8", lambda n, h: n.c(n.c(h)), c=L(8, 8))
hidden("stack mean", "8", lambda n, h: torch.stack([h, n.c(h)], 1).mean(1), c=L(8, 8))
hidden("stack max dim", "8", lambda n, h: torch.stack([h, n.c(h)], -1).max(-1).values, c=L(8, 8))
hidden("pad", "8 6", lambda n, h: F.pad(n.c(h), (1, 1)), c=L(8, 6))
hidden("cat flatten", "8 6 8", lambda n, h: n.c(torch.cat([h, h.relu()], 1)), c=L(16, 8))
hidden("stack interleave", "8 8", lambda n, h: n.c(torch.stack([h, -h], 2).flatten(1)), c=L(16, 8))
hidden("triu", "", lambda n, h: (h.unsqueeze(1) * h.unsqueeze(2)).triu().flatten(1)[:, :8])
hidden("select scale", "3 4", lambda n, h: h * h[:, 3:4])
hidden(
    "self attention over channels",
    "8",
    lambda n, h: ((h.unsqueeze(2) @ h.unsqueeze(1)).softmax(-1) @ n.c(h).unsqueeze(2)).squeeze(2),
    c=L(8, 8),
)
hidden("fft", "", lambda n, h: torch.fft.fft(h).real)
hidden("where", "8", lambda n, h: torch.where(h > 0, h, n.s * h), s=(8,))
hidden("logsumexp", "8", lambda n, h: h - h.logsumexp(1, True))
hidden("var_mean", "8", lambda n, h: h - torch.var_mean(h, 1, keepdim=True)[1])
hidden("einsum ...", "8 8", lambda n, h: torch.einsum("...i,oi->...o", h, n.w), w=(8, 8))
hidden("lerp", "8", lambda n, h: torch.lerp(h, n.c(h), 0.3), c=L(8, 8))
hidden("addmm", "8 8", lambda n, h: torch.addmm(n.z, h, n.w), w=(8, 8), z=(8,))
hidden("pow", "8", lambda n, h: (h**2).sum(1, keepdim=True).rsqrt() * h)
hidden("var", "8", lambda n, h: h / h.std(dim=-1, keepdim=True))
hidden("topk", "8", lambda n, h: h.topk(8).values)
hidden("topk places", "8", lambda n, h: h.gather(1, h.topk(8).indices))
hidden("onehot", "8", lambda n, h: h * F.one_hot(h.argmax(1), 8))
channels("conv bn", "8", lambda n, h: n.n(h), n=nn.BatchNorm2d(8))
channels("depthwise", "8", lambda n, h: n.n(h), n=C(8, 8, 3, padding=1, groups=8))
channels("depthwise x2", "8 8*2", lambda n, h: n.n(h), out=16, n=C(8, 16, 3, groups=8))
channels("depthwise x2 relu x shuffle", "8 8*2", lambda n, h: n.n(h).relu(), out=16, n=C(8, 16, 3, groups=8))
channels("grouped", "2 2*4 2*6", lambda n, h: n.n(h), out=12, n=C(8, 12, 3, groups=2))
channels("grouped transposed", "2 2*4 2*6", lambda n, h: n.n(h), out=12, n=nn.ConvTranspose2d(8, 12, 2, groups=2))
channels("transposed", "8 6", lambda n, h: n.n(h), out=6, n=nn.ConvTranspose2d(8, 6, 2, stride=2))
channels(
    "shuffle grouped",
    "2 2*4 2*4",
    lambda n, h: n.n(h).view(-1, 2, 4, 8, 8).transpose(1, 2).flatten(1, 2),
    n=C(8, 8, 1, groups=2),
)
channels(
    "channel shuffle",
    "2 2*4 2 2*2 2*4",
    lambda n, h: n.m(F.channel_shuffle(n.n(h), 2)),
    n=C(8, 8, 1, groups=2),
    m=C(8, 8, 1, groups=2),
)
channels("pixel shuffle", "2", lambda n, h: F.pixel_shuffle(h, 2), out=2)
channels("pixel unshuffle", "8", lambda n, h: F.pixel_unshuffle(h, 2), out=32)
channels(
    "se", "8 4", lambda n, h: h * n.f2(n.f(h.mean((2, 3), keepdim=True)).relu()).sigmoid(), f=C(8, 4, 1), f2=C(4, 8, 1)
)
channels(
    "se linear",
    "8 4",
    lambda n, h: h * n.f2(n.f(h.mean((2, 3))).relu()).sigmoid()[:, :, None, None],
    f=L(8, 4),
    f2=L(4, 8),
)
channels(
    "eca",
    "",
    lambda n, h: h * n.f(h.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1).sigmoid(),
    f=nn.Conv1d(1, 1, 3, padding=1),
)
channels("group norm", "2 2*4", lambda n, h: n.n(h), n=nn.GroupNorm(2, 8))
channels("group norm 1", "8", lambda n, h: n.n(h), n=nn.GroupNorm(1, 8))
channels("instance", "8", lambda n, h: n.n(h), n=nn.InstanceNorm2d(8, affine=True, track_running_stats=True))
channels("lrn", "", lambda n, h: n.n(h), n=nn.LocalResponseNorm(3))
channels("layernorm chw", "8", lambda n, h: n.n(h), n=nn.LayerNorm([8, 8, 8]))
channels("permute ln", "8", lambda n, h: n.n(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), n=nn.LayerNorm(8))
channels("interp", "8", lambda n, h: F.interpolate(h, scale_factor=2, mode="bilinear"))
channels(
    "pools",
    "8",
    lambda n, h: F.avg_pool2d(h, 2) + F.max_pool2d(h, 2) + F.adaptive_avg_pool2d(h, 4) + F.lp_pool2d(h, 2, 2),
)
channels("unfold", "8", lambda n, h: F.fold(F.unfold(h, 2, stride=2), (8, 8), 2, stride=2))
channels("dropout2d", "8", lambda n, h: F.dropout2d(h, training=False))
channels(
    "channel attention",
    "8",
    lambda n, h: ((h.flatten(2) @ h.flatten(2).transpose(1, 2)).softmax(-1) @ h.flatten(2)).view_as(h),
)
channels("channel attention xcit", "8 2 2*4 2*4 8", xcit, q=C(8, 24, 1), o=C(8, 8, 1))
channels("option A", "8 2 2", lambda n, h: F.pad(h[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)), out=12)
channels("flatten", "8 8", lambda n, h: n.g(h.flatten(1)).view(-1, 8, 1, 1), g=L(512, 8))
channels("flatten last", "8 8", lambda n, h: n.g(h.permute(0, 2, 3, 1).flatten(1)).view(-1, 8, 1, 1), g=L(512, 8))
channels(
    "cat flatten",
    "8 6 8",
    lambda n, h: n.g(torch.cat([h, n.q(h)], 1).flatten(1)).view(-1, 8, 1, 1),
    g=L(14 * 64, 8),
    q=C(8, 6, 1),
)
channels(
    "window",
    "8 8",
    lambda n, h: (
        n.g(h.permute(0, 2, 3, 1).view(-1, 2, 4, 2, 4, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, 8))
        .view(-1, 2, 2, 4, 4, 8)
        .permute(0, 1, 3, 2, 4, 5)
        .reshape(-1, 8, 8, 8)
        .permute(0, 3, 1, 2)
    ),
    g=L(8, 8),
)
channels("roll positions", "8", lambda n, h: h.roll((1, 1), (2, 3)))
channels("in place slice", "2 6", lambda n, h: torch.cat([h[:, :2].relu(), h[:, 2:]], 1))
