# ruff: noqa: ARG005  every step takes the network and the pool, whether it needs both or not
"""Random small networks out of the pieces that move, cut, join, mix and contract dimensions."""

from collections.abc import Callable
from random import Random

import torch
import torch.nn.functional as F
from axis_nets import Net
from torch import Tensor, nn

Step = Callable[[Net, list[Tensor]], Tensor]


class Builder:
    """Draws steps; every step reads earlier values of a pool, the first of which is a batch of vectors of length 5."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.parts: dict[str, nn.Module | tuple[int, ...]] = {}
        self.steps: list[Step] = []
        self.shapes: list[list[int]] = []
        self.log: list[str] = []

    def part(self, part: nn.Module | tuple[int, ...]) -> str:
        name = f"p{len(self.parts)}"
        self.parts[name] = part
        return name

    def add(self, text: str, step: Step, shape: list[int]) -> None:
        if len(shape) <= 5 and torch.Size(shape).numel() <= 20_000:
            self.log.append(text)
            self.steps.append(step)
            self.shapes.append(shape)

    def build(self, steps: int) -> Net:
        width = self.random.choice([12, 16, 24])
        first = self.part(nn.Linear(5, width, bias=self.random.random() < 0.5))
        self.add("first", lambda n, p: getattr(n, first)(p[0]), [3, width])
        for _ in range(steps):
            i = self.random.randrange(max(0, len(self.shapes) - 4), len(self.shapes))
            if len(self.shapes[i]) > 1:
                self.random.choice(_KINDS)(self, i, list(self.shapes[i]))
        outputs = [
            self._output(j) for j in (len(self.shapes) - 1, *(self.random.randrange(len(self.shapes)) for _ in "ab"))
        ]
        steps_ = list(self.steps)

        def body(n: Net, x: Tensor) -> list[Tensor]:
            pool = [x]
            for step in steps_:
                pool.append(step(n, pool))
            return [output(n, pool) for output in outputs]

        return Net(body, **self.parts)

    def _output(self, j: int) -> Step:
        shape, kind = self.shapes[j], self.random.random()
        if kind < 0.8:
            whole = kind < 0.6 or len(shape) == 1
            head = self.part(nn.Linear(torch.Size(shape[1:]).numel() if whole else shape[-1], 3))
            return lambda n, p: getattr(n, head)(p[j + 1].flatten(1) if whole else p[j + 1])
        return lambda n, p: p[j + 1].flatten(1).logsumexp(1)


def _pointwise(b: Builder, i: int, s: list[int]) -> None:
    b.add(f"tanh {i}", lambda n, p: torch.tanh(p[i + 1]), s)


def _linear(b: Builder, i: int, s: list[int]) -> None:
    layer = nn.Linear(s[-1], b.random.choice([s[-1], 8, 12]), bias=b.random.random() < 0.5)
    name = b.part(layer)
    b.add(f"linear {i}", lambda n, p: getattr(n, name)(p[i + 1]), [*s[:-1], layer.out_features])


def _split(b: Builder, i: int, s: list[int]) -> None:
    d = b.random.randrange(1, len(s))
    factors = [f for f in range(2, s[d]) if s[d] % f == 0]
    if factors:
        f = b.random.choice(factors)
        b.add(
            f"split {i} {d} {f}",
            lambda n, p: p[i + 1].unflatten(d, (f, s[d] // f)),
            [*s[:d], f, s[d] // f, *s[d + 1 :]],
        )


def _merge(b: Builder, i: int, s: list[int]) -> None:
    if len(s) > 2:
        d = b.random.randrange(1, len(s) - 1)
        b.add(f"merge {i} {d}", lambda n, p: p[i + 1].flatten(d, d + 1), [*s[:d], s[d] * s[d + 1], *s[d + 2 :]])


def _permute(b: Builder, i: int, s: list[int]) -> None:
    order = [0, *b.random.sample(range(1, len(s)), len(s) - 1)]
    b.add(f"permute {i} {order}", lambda n, p: p[i + 1].permute(order), [s[j] for j in order])


def _slice(b: Builder, i: int, s: list[int]) -> None:
    d = b.random.randrange(1, len(s))
    start = b.random.choice([0, s[d] // 2, b.random.randrange(s[d])])
    length = b.random.choice([s[d] - start, max(1, s[d] // 2), 1])
    length = min(length, s[d] - start)
    b.add(
        f"slice {i} {d} {start} {length}", lambda n, p: p[i + 1].narrow(d, start, length), [*s[:d], length, *s[d + 1 :]]
    )


def _select(b: Builder, i: int, s: list[int]) -> None:
    if len(s) > 2:
        d = b.random.randrange(1, len(s))
        index = b.random.randrange(s[d])
        b.add(f"select {i} {d} {index}", lambda n, p: p[i + 1].select(d, index), [*s[:d], *s[d + 1 :]])


def _pair(b: Builder, i: int, s: list[int]) -> None:
    """Two values: added, multiplied and summed, concatenated, stacked or contracted."""
    j = b.random.choice([j for j, t in enumerate(b.shapes) if len(t) == len(s)])
    t, d = b.shapes[j], b.random.randrange(1, len(s))
    kind = b.random.choice(["add", "cat", "stack", "product", "dot"])
    text = f"{kind} {i} {j} {d}"
    if kind == "add" and all(m == n or 1 in (m, n) for m, n in zip(s, t, strict=True)):
        b.add(text, lambda n, p: p[i + 1] + p[j + 1].sin(), [max(m, n) for m, n in zip(s, t, strict=True)])
    elif kind == "cat" and s[:d] + s[d + 1 :] == t[:d] + t[d + 1 :]:
        b.add(text, lambda n, p: torch.cat([p[i + 1], p[j + 1]], d), [*s[:d], s[d] + t[d], *s[d + 1 :]])
    elif kind == "stack" and s == t:
        b.add(text, lambda n, p: torch.stack([p[i + 1], p[j + 1]], d), [*s[:d], 2, *s[d:]])
    elif kind == "dot" and s == t and len(s) > 2:
        b.add(text, lambda n, p: (p[i + 1] * p[j + 1]).sum(d), [*s[:d], *s[d + 1 :]])
    elif kind == "product" and len(s) > 2 and s[:-2] == t[:-2]:
        if s[-1] == t[-2]:
            b.add(text, lambda n, p: p[i + 1] @ p[j + 1], [*s[:-1], t[-1]])
        elif s[-1] == t[-1]:
            b.add(text + " T", lambda n, p: p[i + 1] @ p[j + 1].transpose(-1, -2), [*s[:-1], t[-2]])


def _mix(b: Builder, i: int, s: list[int]) -> None:
    """One dimension is mixed, reduced or reordered."""
    d = b.random.randrange(1, len(s))
    kind = b.random.choice(["softmax", "sum", "flip", "roll", "cumsum", "halves", "repeat", "twice", "max"])
    kept, text = [*s[:d], *s[d + 1 :]], f"{kind} {i} {d}"
    if kind == "softmax":
        b.add(text, lambda n, p: (3 * p[i + 1]).softmax(d), s)
    elif kind == "sum" and len(s) > 2:
        b.add(text, lambda n, p: p[i + 1].sum(d), kept)
    elif kind == "max" and len(s) > 2:
        b.add(text, lambda n, p: p[i + 1].amax(d), kept)
    elif kind in ("flip", "roll", "cumsum") and b.random.random() < 0.4:
        step = {"flip": lambda x: x.flip(d), "roll": lambda x: x.roll(1, d), "cumsum": lambda x: x.cumsum(d)}[kind]
        b.add(text, lambda n, p: step(p[i + 1]), s)
    elif kind == "halves" and s[d] % 2 == 0:
        half = [*s[:d], s[d] // 2, *s[d + 1 :]]
        b.add(text, lambda n, p: p[i + 1].chunk(2, d)[0] * p[i + 1].chunk(2, d)[1].sin(), half)
    elif kind == "repeat":
        b.add(text, lambda n, p: p[i + 1].repeat_interleave(2, d), [*s[:d], 2 * s[d], *s[d + 1 :]])
    elif kind == "twice":
        b.add(text, lambda n, p: torch.cat([p[i + 1].sin(), p[i + 1].cos()], d), [*s[:d], 2 * s[d], *s[d + 1 :]])


def _parameter(b: Builder, i: int, s: list[int]) -> None:
    sizes = [n if b.random.random() < 0.7 else 1 for n in s[b.random.randrange(1, len(s)) :]]
    if max(sizes) > 1:
        name = b.part(tuple(sizes))
        b.add(f"parameter {i} {sizes}", lambda n, p: p[i + 1] * (1.5 + getattr(n, name)), s)


def _norm(b: Builder, i: int, s: list[int]) -> None:
    name = b.part(nn.LayerNorm(s[-1]))
    b.add(f"norm {i}", lambda n, p: getattr(n, name)(p[i + 1]), s)


def _attention(b: Builder, i: int, s: list[int]) -> None:
    if len(s) == 4:
        b.add(
            f"attention {i}", lambda n, p: F.scaled_dot_product_attention(p[i + 1], p[i + 1].sin(), p[i + 1].cos()), s
        )
    elif len(s) == 3:
        b.add(f"gram {i}", lambda n, p: p[i + 1] @ p[i + 1].transpose(1, 2), [s[0], s[1], s[1]])
    elif len(s) == 2 and s[1] < 13:
        b.add(f"outer {i}", lambda n, p: torch.einsum("bi,bj->bij", p[i + 1], p[i + 1].cos()), [s[0], s[1], s[1]])


def _transposed_sum(b: Builder, i: int, s: list[int]) -> None:
    if len(s) > 2 and s[-1] == s[-2]:
        b.add(f"transposed sum {i}", lambda n, p: p[i + 1] + p[i + 1].transpose(-1, -2).sin(), s)


_KINDS = [
    _pointwise, _linear, _linear, _split, _split, _merge, _permute, _slice, _select, _pair, _pair, _pair, _mix, _mix,
    _parameter, _norm, _attention, _transposed_sum,
]  # fmt: skip
