"""Cases of the law by what operators' definitions say of rare arguments: (name, free spaces expected, network, input).

Spaces are written by size, nested ones as ``owners*size``. ``n`` is the network, ``h`` a hidden value of width 8.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from axis_cases import Body
from axis_nets import Net, tensor
from torch import Tensor, nn

CASES: dict[str, tuple[str, Callable[[], Net], Tensor]] = {}
L = nn.Linear


def case(name: str, expected: str, shape: tuple[int, ...], body: Body, **parts: nn.Module | tuple[int, ...]) -> None:
    CASES[name] = expected, lambda: Net(body, **parts), tensor(*shape)


VECTOR, TOKENS = (5,), (6, 5)
case(
    "several before the first difference", "", VECTOR,
    lambda n, x: n.b(torch.diff(n.a(x), prepend=n.c(x))), a=L(5, 4), c=L(5, 3), b=L(6, 3),
)  # fmt: skip
case(
    "several after the last difference", "8", TOKENS,
    lambda n, x: n.b(torch.diff(n.a(x), dim=1, append=n.w.expand(3, -1, -1))), a=L(5, 8), w=(3, 8), b=L(8, 3),
)  # fmt: skip
case(
    "groups of shuffled channels", "2 2*2 2", (3, 4, 4),
    lambda n, x: n.b(n.n(n.a(x).unflatten(1, (4, 2)).transpose(1, 2).flatten(1, 2))),
    a=nn.Conv2d(3, 8, 1), n=nn.GroupNorm(4, 8), b=nn.Conv2d(8, 3, 1),
)  # fmt: skip
case(
    "rows by a list in the neurons' order", "8", VECTOR,
    lambda n, x: n.a(x) @ n.t.cumsum(0).index_select(0, (n.a.weight @ n.w).argmax(1)),
    a=L(5, 8), w=(5, 4), t=(4, 3),
)  # fmt: skip
case(
    "trace of a rectangle", "", VECTOR,
    lambda n, x: n.b(x) + torch.trace(n.a(x)[0].view(4, 8)), a=L(5, 32), b=L(5, 3),
)  # fmt: skip
case(
    "a bias for every row",
    "8",
    VECTOR,
    lambda n, x: F.linear(F.linear(x, n.w, n.c).relu(), n.v),
    w=(8, 5),
    c=(3, 8),
    v=(2, 8),
)
case(
    "a crop that is put back behind", "8", (3, 6),
    lambda n, x: n.d(F.conv_transpose1d(n.a(x), n.w, dilation=3, padding=1, output_padding=2).flatten(1)),
    a=nn.Linear(6, 8), w=(3, 8, 1), d=L(64, 3),
)  # fmt: skip
case("the largest in no order", "", VECTOR, lambda n, x: n.b(n.a(x).topk(5, sorted=False)[0]), a=L(5, 8), b=L(5, 3))
case(
    "the first that is positive", "", VECTOR,
    lambda n, x: n.b(F.one_hot((n.a(x) > 0).float().argmax(1), 8) * n.a(x)), a=L(5, 8), b=L(8, 3),
)  # fmt: skip
case(
    "a type of another shape", "8 7", VECTOR,
    lambda n, x: n.b(n.a(x) * n.g.ge(1).type_as(n.b.weight) + n.g.ge(1).to(n.c(x)[:, :, None])),
    a=L(5, 8), c=L(5, 7), g=(8,), b=L(8, 3),
)  # fmt: skip
case("over no dimension", "8", VECTOR, lambda n, x: n.b(n.a(x) * torch.any(n.a(x) > 0, dim=())), a=L(5, 8), b=L(8, 3))
case("squeezed nowhere", "8", VECTOR, lambda n, x: n.b(n.a(x)[:, None].squeeze(())[:, 0]), a=L(5, 8), b=L(8, 3))
case(
    "an owner that is one of several pieces", "6 4 2", VECTOR,
    lambda n, x: n.b(x) * (F.pad(n.u.view(6, 4).t(), (1, 2)) * n.w.view(4, 9)).sin().sum(),
    b=L(5, 3), u=(24,), w=(36,),
)  # fmt: skip
PUT = torch.ops.aten.index_put.default
case(
    "one number behind a mask", "8", VECTOR, lambda n, x: n.b(PUT(n.a(x), [n.a(x) > 1], x[0, 0])), a=L(5, 8), b=L(8, 3)
)
case(
    "one row behind a mask", "8", TOKENS, lambda n, x: n.b(PUT(n.a(x), [x[..., 0] > 0], n.w)), a=L(5, 8), w=(8,),
    b=L(8, 3),
)  # fmt: skip
case(
    "neurons behind a mask", "8", TOKENS, lambda n, x: n.b(PUT(n.a(x), [None, None, n.w > 0], n.v)), a=L(5, 8), w=(8,),
    v=(6, 1), b=L(8, 3),
)  # fmt: skip
case(
    "rows one after the other behind a mask", "8", TOKENS,
    lambda n, x: n.b(PUT(n.a(x), [None, torch.arange(6) % 3 == 0], n.w)), a=L(5, 8), w=(2, 8), b=L(8, 3),
)  # fmt: skip
case(
    "numbers one after the other behind a mask", "", VECTOR,
    lambda n, x: n.b(PUT(n.a(x), [None, torch.arange(8) % 3 == 0], n.w)), a=L(5, 8), w=(3,), b=L(8, 3),
)  # fmt: skip
case(
    "one of a list by position", "9 8", VECTOR, lambda n, x: n.b(n.c(x) * n.w.take(n.a(x).argmax(1))[:, None]),
    a=L(5, 9), w=(9,), c=L(5, 8), b=L(8, 3),
)  # fmt: skip
case(
    "one of a matrix by its place", "8", VECTOR, lambda n, x: n.b(n.c(x) * n.w.take(n.a(x).argmax(1))[:, None]),
    a=L(5, 9), w=(3, 3), c=L(5, 8), b=L(8, 3),
)  # fmt: skip
case(
    "put by place", "", VECTOR, lambda n, x: n.b(n.a(x) + n.w.put(torch.tensor([0, 3]), n.v)),
    a=L(5, 8), w=(8,), v=(2,), b=L(8, 3),
)  # fmt: skip
case(
    "a histogram of all", "8", VECTOR, lambda n, x: n.b(x) + n.c(torch.histc(n.a(x), 4, -2, 2)), a=L(5, 8), b=L(5, 3),
    c=L(4, 3),
)  # fmt: skip
case(
    "gate and value side by side", "8", VECTOR, lambda n, x: n.b(n.a(x)[:, ::2].sigmoid() * n.a(x)[:, 1::2]),
    a=L(5, 16), b=L(8, 3),
)  # fmt: skip
case(
    "one of three neighbours", "4", VECTOR, lambda n, x: n.b(n.a(x)[:, 2::3]) + n.b(n.c(x)[:, 1:]), a=L(5, 12),
    c=L(5, 5), b=L(4, 3),
)  # fmt: skip
case("every other of an odd number", "", VECTOR, lambda n, x: n.b(n.a(x)[:, ::2]), a=L(5, 7), b=L(4, 3))
case("every other from the third on", "", VECTOR, lambda n, x: n.b(n.a(x)[:, 2::2]), a=L(5, 8), b=L(3, 3))
case(
    "windows that overlap", "2 2*4", TOKENS,
    lambda n, x: n.b(torch.as_strided(n.a(x), (3, 2, 4, 8), (48, 16, 8, 1)).unflatten(3, (2, 4)).softmax(4)
                     .mean((1, 2)).flatten(1)),
    a=L(5, 8), b=L(8, 3),
)  # fmt: skip
case(
    "windows of windows", "8", TOKENS,
    lambda n, x: n.b(torch.as_strided(n.a(x).view(3, 3, 2, 8), (3, 5, 2, 8), (48, 8, 8, 1)).sin().mean((1, 2))),
    a=L(5, 8), b=L(8, 3),
)  # fmt: skip


def windows_apart(n: Net, x: Tensor) -> Tensor:
    """Of tokens that lie before the samples in memory."""
    h = n.a(x).transpose(0, 1).contiguous().transpose(0, 1)
    windows = torch.as_strided(h, (h.size(0), 5, 2, 8), (8, h.stride(1), h.stride(1), 1))
    return n.b(windows.sin().mean((1, 2)))


case("windows of what lies apart", "8", TOKENS, windows_apart, a=L(5, 8), b=L(8, 3))
case(
    "windows over all that there is", "", TOKENS,
    lambda n, x: n.b(torch.as_strided(n.a(x), (3, 5, 9), (48, 8, 1))), a=L(5, 8), b=L(9, 3),
)  # fmt: skip
case(
    "windows that begin later", "", TOKENS,
    lambda n, x: n.b(torch.as_strided(n.a(x), (2, 5, 8), (48, 8, 1), 8)), a=L(5, 8), b=L(8, 3),
)  # fmt: skip
