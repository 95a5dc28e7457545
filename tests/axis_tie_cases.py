# ruff: noqa: ARG005  every body takes the network and the input, whether it needs both or not
"""Cases of the law where values may be equal, stand in no order or are copies: (name, free spaces expected, network,
input). Spaces are written by size, nested ones as ``owners*size``."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from axis_cases import Body
from axis_nets import Net, tensor
from torch import Tensor, nn

CASES: dict[str, tuple[str, Callable[[], Net], Tensor]] = {}
L = nn.Linear


def case(name: str, expected: str, body: Body, shape: tuple[int, ...] = (5,), **parts: nn.Module | tuple[int, ...]):
    CASES[name] = expected, lambda: Net(body, **parts), tensor(*shape)


def picked(name: str, expected: str, scores: Callable[[Tensor], Tensor], find: str = "argmax") -> None:
    """A row of a table by the place of the largest score, or of another; ``n.w`` is what else scores are made of."""

    def body(n: Net, x: Tensor) -> Tensor:
        place = getattr(scores(n, n.a(x)), find)(1)
        return n.b(n.t[place[:, 0] if find == "argsort" else place])

    case(f"place of {name}", expected, body, a=L(5, 8), t=(8, 6), w=(8,), s=(1,), b=L(6, 3))


picked("the largest", "8 6", lambda n, h: h)
picked("the largest below nothing", "8 6", lambda n, h: h.relu())
picked("the largest that no mask puts out", "8 6", lambda n, h: h.masked_fill(n.w > n.w.mean(), -torch.inf))
picked("the largest share", "8 6", lambda n, h: h.clamp(min=0).softmax(1))
picked("the largest of truths and numbers", "8 6", lambda n, h: (h > 0) + h)
picked("the largest of mixed rows", "8 8 6", lambda n, h: torch.tanh(h.round() @ torch.outer(n.w, n.t.sum(1))))
picked("the least above nothing", "6", lambda n, h: h.relu(), "argmin")
picked("all above nothing", "6", lambda n, h: h.relu(), "argsort")
picked("the largest of the negative", "6", lambda n, h: -h.relu())
picked("the largest below a bound", "6", lambda n, h: h.clamp(max=0.1))
for name in ("round", "sign", "floor", "trunc"):
    picked(f"the largest by {name}", "6", lambda n, h, name=name: getattr(2 * h, name)())
picked("the largest under another name", "6", lambda n, h: h.round().contiguous().float())
picked("the largest step", "6", lambda n, h: torch.heaviside(h, n.s))
picked("the largest truth times a number", "6", lambda n, h: (h > 0) * n.s)
picked("the largest of two numbers", "6", lambda n, h: torch.where(h > 0, n.s, 2.0))
picked("the largest of those that are filled", "6", lambda n, h: h.masked_fill(n.w > n.w.mean(), 0.7))
picked("the largest that is chosen", "6", lambda n, h: torch.where(h > n.w, h, 0.0))
picked("the largest of two", "8 6", lambda n, h: torch.where(h > n.w, h, h.tanh()))
picked("the largest or one", "6", lambda n, h: torch.max(h, n.s))
picked("the largest but for a bound of all", "6", lambda n, h: torch.maximum(h, h.mean(1, keepdim=True)))
picked("the largest before a border", "6 4", lambda n, h: torch.cat([h[:, :4], h.new_zeros(h.shape[0], 4)], 1))
picked("the largest before a rim", "6 4", lambda n, h: F.pad(h[:, :4], (2, 2)))


def copies(n: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    """What is repeated meets what is not, and remains repeated."""
    repeated = n.a(x)[:, :, None].expand(-1, -1, 4)
    return (repeated + n.w).sin().sum((1, 2)), n.t[repeated.argmax(2)].sum((1, 2))


case("place of a copy", "4 3 6", copies, a=L(5, 6), w=(4,), t=(4, 3))
case(
    "place of a copy among others", "4 6",
    lambda n, x: n.b(n.t[torch.cat([n.a(x).repeat_interleave(2, 1), x], 1).argmax(1)]),
    a=L(5, 4), t=(13, 6), b=L(6, 3),
)  # fmt: skip
case(
    "a written part of a state", "2 2", lambda n, x: n.r(
        x[:, None], torch.slice_scatter(x.new_zeros(1, x.shape[0], 4), n.a(x)[None], 2, 0, 2)
    )[0] @ n.w,
    a=L(5, 2), r=nn.GRU(5, 4, batch_first=True), w=(4, 3),
)  # fmt: skip
case(
    "cosines of all pairs", "4 6",
    lambda n, x: (lambda h: n.b(F.cosine_similarity(h[:, :, None], h.sin()[:, None], dim=-1).amax(2)))(
        n.a(x).unflatten(1, (4, 6))
    ),
    a=L(5, 24), b=L(4, 3),
)  # fmt: skip
case(
    "inverse of one half", "",
    lambda n, x: n.b(torch.linalg.pinv(n.a(x).unflatten(1, (4, 4)), hermitian=True).flatten(1)),
    a=L(5, 16), b=L(16, 3),
)  # fmt: skip


def unsorted(name: str, expected: str, body: Callable[[Tensor, Tensor, Net], Tensor], tokens: int = 4) -> None:
    """The three largest of eight numbers of every token, in no order, and their places."""
    case(
        f"unsorted {name}", expected,
        lambda n, x: (lambda top: body(top[0], top[1], n))(n.a(x).topk(3, sorted=False)), (tokens, 5),
        a=L(5, 8), t=(8, 6), w=(4, 4), b=L(6, 3),
    )  # fmt: skip


unsorted("summed up", "8", lambda v, i, n: v.softmax(2).square().sum(2))
unsorted("rows of a table", "8 6", lambda v, i, n: n.b((n.t[i] * v[..., None]).sum(2)))
unsorted("put back", "8", lambda v, i, n: v.new_zeros(v.shape[0], v.shape[1], 8).scatter(2, i, v) @ n.t)
unsorted(
    "put back elsewhere", "", lambda v, i, n: v.new_zeros(v.shape[0], v.shape[1], 8).scatter(2, i, v.flip(2)) @ n.t
)
unsorted("marked", "8", lambda v, i, n: F.one_hot(i, 8).to(v).sum(2) @ n.t)
unsorted("the first", "", lambda v, i, n: v[..., 0])
unsorted("over tokens", "", lambda v, i, n: v.sum(1).amax(1))
unsorted("between tokens", "", lambda v, i, n: (n.w @ v).amax(2))
unsorted("shares of tokens", "", lambda v, i, n: v.softmax(1).amax(2))
unsorted("weighted", "", lambda v, i, n: v @ n.w[:3])
unsorted("joined", "", lambda v, i, n: torch.cat([v, n.b(n.t[i[..., 0]])], 2) @ n.t[:6])
case("windows side by side", "4 4*3", lambda n, x: n.b(n.a(x).unfold(1, 3, 3).amax(2)), a=L(5, 12), b=L(4, 3))
case("windows and a rest", "2 2*3 2", lambda n, x: n.b(n.a(x).unfold(1, 3, 3).amax(2)), a=L(5, 8), b=L(2, 3))
for indexing in ("ij", "xy"):
    case(
        f"a grid by {indexing}", "4 8",
        lambda n, x, indexing=indexing: torch.einsum(
            "ij,bi,bj->b" if indexing == "ij" else "ji,bi,bj->b",
            torch.stack(torch.meshgrid(n.p, n.q, indexing=indexing)).prod(0).sin(), n.a(x), n.b(x),
        ),
        p=(4,), q=(8,), a=L(5, 4), b=L(5, 8),
    )  # fmt: skip
