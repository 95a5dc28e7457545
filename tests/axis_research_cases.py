"""Cases of the law that networks of research code brought to light: (name, free spaces expected, network, input).

Spaces are written by size, nested ones as ``owners*size``. ``n`` is the network, ``h`` a hidden value of width 8.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  its operators
from axis_cases import Body
from axis_nets import Net, tensor
from torch import Tensor, nn

CASES: dict[str, tuple[str, Callable[[], Net], Tensor]] = {}
L, C = nn.Linear, nn.Conv2d


def case(name: str, expected: str, shape: tuple[int, ...], body: Body, **parts: nn.Module | tuple[int, ...]) -> None:
    CASES[name] = expected, lambda: Net(body, **parts), tensor(*shape)


def sampled(n, x):
    """Two heads look at places of their own: each head's map by that head's grid."""
    h = n.a(x).flatten(2).transpose(1, 2)
    maps = n.v(h).unflatten(2, (2, 4)).permute(0, 2, 3, 1).reshape(-1, 4, 4, 4)
    grid = n.g(h.mean(1)).view(-1, 2, 3, 1, 2).flatten(0, 1)
    return n.b(F.grid_sample(maps, grid, align_corners=False).mean((2, 3)).view(-1, 8))


def queries(n, x):
    """Learned queries look at places of their own; what they see is in their order."""
    grid = n.g(n.q).expand(x.shape[0], -1, -1).unsqueeze(2)
    seen = F.grid_sample(n.a(x), grid, align_corners=False).squeeze(3).transpose(1, 2)
    return n.b(n.q + seen).amax(1)


def unpooled(n, x):
    pooled = F.max_pool1d_with_indices(n.a(x)[:, None], 2)
    return n.b(F.max_unpool1d(pooled[0], pooled[1], 2)[:, 0])


def gram(n, x):
    h = torch.tanh(n.a(x)).unflatten(1, (4, 3))
    square = h @ h.mT + 0.5 * torch.eye(4)
    return square, h


def inverse(n, x):
    square, h = gram(n, x)
    return n.b((torch.linalg.inv(square) @ h).flatten(1))


def solution(n, x):
    square, h = gram(n, x)
    return n.b(torch.linalg.solve(square, h).flatten(1)) + torch.linalg.solve(square, h[..., 0]).sum(1, True)


def other_side(n, x):
    square, h = gram(n, x)
    return n.b(torch.linalg.solve(square, h.mT, left=False).flatten(1))


def functions(n, x):
    square, h = gram(n, x)
    grown = torch.matrix_exp(0.1 * square).diagonal(dim1=1, dim2=2).sum(1)
    return n.b(h.flatten(1)) + (torch.linalg.slogdet(square)[1] + torch.logdet(square) + grown)[:, None]


IMAGE, VECTOR, TOKENS = (3, 4, 4), (5,), (6, 5)
case("grid of every head", "8 2 2*4 2*3", IMAGE, sampled, a=C(3, 8, 1), v=L(8, 8), g=L(8, 12), b=L(8, 3))
case("grid of every query", "5 8", IMAGE, queries, q=(5, 8), a=C(3, 8, 1), g=L(8, 2), b=L(8, 3))
case(
    "bilinear at equal places", "4 6 7", VECTOR,
    lambda n, x: n.c(n.b(n.p.expand(3, -1, -1), n.q.expand(3, -1, -1)) * x[:, None]).mean(1),
    p=(4, 6), q=(4, 7), b=nn.Bilinear(6, 7, 5), c=L(5, 3),
)  # fmt: skip
case(
    "cell at equal places", "4 8", VECTOR,
    lambda n, x: n.b(n.c((x[:, None] * n.p).flatten(0, 1), n.s.repeat(3, 1)).view(3, 4, 8)).amax(1),
    p=(4, 5), s=(4, 8), c=nn.GRUCell(5, 8), b=L(8, 3),
)  # fmt: skip
case(
    "states at equal places", "4 8", TOKENS,
    lambda n, x: n.b(n.c((x.transpose(0, 1)[:, :, None] * n.p).flatten(1, 2), n.s.repeat(3, 1)[None])[1][0]).view(
        3, 4, 3
    ).amax(1),
    p=(4, 5), s=(4, 8), c=nn.GRU(5, 8), b=L(8, 3),
)  # fmt: skip
case("one step", "8 7", VECTOR, lambda n, x: n.b(n.c(n.a(x)[None])[1][0]), a=L(5, 8), c=nn.GRU(8, 7), b=L(7, 3))
case(
    "kernels of one number", "6", TOKENS,
    lambda n, x: n.b(n.d(n.a(x).chunk(2, 2)[0]) * n.a(x).chunk(2, 2)[1]),
    a=L(5, 12), d=nn.Conv1d(6, 6, 1), b=L(6, 3),
)  # fmt: skip
case(
    "kernel of one number in a row", "8 2", (4, 5),
    lambda n, x: n.b(n.d(n.a(x)[:, None]).sum(1)), a=L(5, 8), d=C(1, 2, (3, 1), padding=(1, 0)), b=L(8, 3),
)  # fmt: skip
case(
    "steps over neurons",
    "",
    VECTOR,
    lambda n, x: n.b(n.d(n.a(x)[:, None])[:, 0]),
    a=L(5, 8),
    d=nn.Conv1d(1, 1, 1, 2),
    b=L(4, 3),
)
case("pool of pieces", "4 4*2", VECTOR, lambda n, x: n.b(F.max_pool1d(n.a(x)[:, None], 2)[:, 0]), a=L(5, 8), b=L(4, 3))
case(
    "pool with gaps",
    "",
    VECTOR,
    lambda n, x: n.b(F.max_pool1d(n.a(x)[:, None], 2, 2, dilation=2, ceil_mode=True)[:, 0]),
    a=L(5, 8),
    b=L(4, 3),
)
case(
    "pool of all",
    "8",
    TOKENS,
    lambda n, x: n.b(x.mean(1) + F.adaptive_avg_pool1d(n.a(x), 1).mean(1)),
    a=L(5, 8),
    b=L(5, 3),
)
case(
    "pool that overlaps", "", VECTOR, lambda n, x: n.b(F.avg_pool1d(n.a(x)[:, None], 2, 1)[:, 0]), a=L(5, 8), b=L(7, 3)
)
case(
    "place of the largest piece", "", VECTOR,
    unpooled,
    a=L(5, 8), b=L(8, 3),
)  # fmt: skip
case("inverse", "4 3", VECTOR, inverse, a=L(5, 12), b=L(12, 3))
case("solution", "4 2", VECTOR, solution, a=L(5, 12), b=L(12, 3))
case("solution from the other side", "4 3", VECTOR, other_side, a=L(5, 12), b=L(12, 3))
case("functions of a matrix", "4 3", VECTOR, functions, a=L(5, 12), b=L(12, 3))


def triangles(n, x):
    """Three rows by the triangle of their inner products, from both sides."""
    h = torch.tanh(n.a(x)).unflatten(1, (3, 4))
    lower = torch.linalg.cholesky(h @ h.mT + torch.eye(3))
    by_left = torch.linalg.solve_triangular(lower, h, upper=False)
    by_right = torch.linalg.solve_triangular(lower.mT, h.mT, upper=True, left=False).mT
    return n.b((by_left + by_right + torch.cholesky_solve(h, lower)).flatten(1))


case("triangles", "4", VECTOR, triangles, a=L(5, 12), b=L(12, 3))
case(
    "inverse of a parameter", "", VECTOR, lambda n, x: n.b(n.a(x) @ torch.inverse(n.w)), a=L(5, 8), w=(8, 8), b=L(8, 3)
)
case("quantile", "8", TOKENS, lambda n, x: n.b(torch.quantile(n.a(x), 0.3, dim=1)), a=L(5, 8), b=L(8, 3))
case(
    "bucketize",
    "8",
    VECTOR,
    lambda n, x: n.b(torch.bucketize(n.a(x), torch.linspace(-1, 1, 9)).float()),
    a=L(5, 8),
    b=L(8, 3),
)
case(
    "halves by hsplit",
    "4",
    VECTOR,
    lambda n, x: n.b(torch.hsplit(n.a(x), 2)[0] * torch.hsplit(n.a(x), 2)[1]),
    a=L(5, 8),
    b=L(4, 3),
)
case(
    "column of ones", "8 7", VECTOR,
    lambda n, x: n.b(n.c(torch.cat([torch.ones_like(n.a(x)[:, :1]), n.a(x)], 1)).relu()),
    a=L(5, 8), c=L(9, 7), b=L(7, 3),
)  # fmt: skip
case(
    "capsules", "2 5 2*4", IMAGE,
    lambda n, x: (n.w @ n.a(x).view(3, 2, 4, 16).transpose(2, 3).reshape(3, 32, 1, 4, 1)).squeeze(4).sum(1).norm(dim=2),
    a=C(3, 8, 1), w=(1, 32, 3, 5, 4),
)  # fmt: skip
case(
    "rows chosen by rows of a table", "5 8 6", VECTOR,
    lambda n, x: n.b(torch.tanh(n.a(x)) @ n.t.index_select(0, n.w.argmax(1)).t()),
    a=L(5, 8), w=(6, 5), t=(5, 8), b=L(6, 3),
)  # fmt: skip
case("codes by an index", "9 6", VECTOR, lambda n, x: n.b(n.t[n.a(x).argmax(1)]), a=L(5, 9), t=(9, 6), b=L(6, 3))
case(
    "codes by two indices", "6", VECTOR, lambda n, x: n.b(n.t[n.a(x).argmax(1), n.c(x).argmax(1)]),
    a=L(5, 8), c=L(5, 7), t=(8, 7, 6), b=L(6, 3),
)  # fmt: skip
case(
    "imaginary part of a conjugate", "4 6 6", VECTOR,
    lambda n, x: n.b(torch.cat([n.c(torch.view_as_complex(n.a(x).unflatten(1, (4, 2))).conj().imag), n.d(x)], 1)),
    a=L(5, 8), c=L(4, 6), d=L(5, 6), b=L(12, 3),
)  # fmt: skip
case(
    "codes of copies", "8 6", VECTOR, lambda n, x: n.b(n.t[n.a(x).repeat(1, 2).argmax(1)]),
    a=L(5, 8), t=(16, 6), b=L(6, 3),
)  # fmt: skip


def experts(n, x):
    """The weights of the two experts that the gate picks."""
    share, chosen = n.g(x).topk(2)
    z = F.relu(torch.einsum("bkhd,bd->bkh", n.w[chosen], x) + n.c[chosen])
    return torch.einsum("bkdh,bkh,bk->bd", n.v[chosen], z, share)


case("experts by an index", "4 8", VECTOR, experts, g=L(5, 4), w=(4, 8, 5), c=(4, 8), v=(4, 3, 8))


def chosen_by(moved: Callable[[Tensor], Tensor]) -> Body:
    """Rows of a table by positions that have been moved about."""
    return lambda n, x: n.b(n.t[moved(n.a(x).topk(2).indices)].reshape(3, 2, 6).sum(1))


for name, moved in (
    ("viewed", lambda i: i.view(-1)),
    ("made long", lambda i: i.long()),
    ("turned over twice", lambda i: i.t().contiguous().t()),
    ("in pieces", lambda i: torch.stack([i[:, :1].squeeze(1), i.unbind(1)[1]])),
):
    spaces = "6" if name == "in pieces" else "9 6"  # a new dimension of positions: not followed
    case(f"positions {name}", spaces, VECTOR, chosen_by(moved), a=L(5, 9), t=(9, 6), b=L(6, 3))
case(
    "tokens by position", "4 2", VECTOR,
    lambda n, x: n.b(n.c(x).view(3, 4, 2).gather(1, n.a(x).topk(2).indices[..., None].expand(-1, -1, 2)).flatten(1)),
    a=L(5, 4), c=L(5, 8), b=L(4, 3),
)  # fmt: skip
case(
    "positions of another group", "4 4", VECTOR,  # each group could order its own, but one group's positions serve all
    lambda n, x: n.b(
        n.a(x).view(3, 4, 4).gather(2, n.a(x).view(3, 4, 4).argmax(2, keepdim=True).mT.expand(3, 4, 4)).flatten(1)
    ),
    a=L(5, 16), b=L(16, 3),
)  # fmt: skip
case(
    "a mask of positions", "8", VECTOR, lambda n, x: n.b(n.c(x) * n.a(x).argmax(1).bool()[:, None]),
    a=L(5, 6), c=L(5, 8), b=L(8, 3),
)  # fmt: skip


def deformed(groups: int, offset_groups: int, mask: bool) -> Body:
    def body(n: Net, x: Tensor) -> Tensor:
        h = n.a(x)
        shifts, shares = n.d(h).sin().split([8 * offset_groups, 4 * offset_groups], 1)
        share = shares if mask else shares.new_zeros(3, 1)
        operator = torch.ops.torchvision.deform_conv2d.default
        seen = operator(h, n.w, shifts, share, n.c, 1, 1, 0, 0, 1, 1, groups, offset_groups, mask)
        return n.b(seen).mean((2, 3))

    return body


for name, expected, groups, offset_groups, mask in (
    ("deformed", "6 8 4", 1, 1, False),
    ("deformed, two groups of offsets", "6 4", 1, 2, True),
    ("deformed, two groups", "2 2*3 2*4", 2, 1, True),
):
    case(
        name, expected, IMAGE, deformed(groups, offset_groups, mask),
        a=C(3, 8, 1), d=C(8, 12 * offset_groups, 2), w=(6, 8 // groups, 2, 2), c=(6,), b=C(6, 3, 1),
    )  # fmt: skip
