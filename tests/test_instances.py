"""Blocks of one class are levels also where no value divides the graph."""

import torch
from torch import nn

from fxfuse.pipeline import analyse


class Basic(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.two(torch.relu(self.one(x))))


class Parallel(nn.Module):
    """Two branches of blocks that exchange what they have, twice: no value inside is a cut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.high = nn.ModuleList(nn.Sequential(Basic(4), Basic(4)) for _ in range(2))
        self.low = nn.ModuleList(nn.Sequential(Basic(6), Basic(6)) for _ in range(2))
        self.up = nn.ModuleList(nn.Conv2d(6, 4, 1) for _ in range(2))
        self.over = nn.Conv2d(4, 6, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        y = torch.relu(self.down(x))
        x, y = self.high[0](x), self.low[0](y)
        x, y = x + self.up[0](y), y + self.over(x)
        x, y = self.high[1](x), self.low[1](y)
        return self.head((x + self.up[1](y)).mean((2, 3)))


def test_residual_blocks_in_parallel_branches_are_levels() -> None:
    found = analyse(Parallel(), (torch.randn(2, 3, 8, 8),)).partition.levels
    blocks = {f"{branch}.{stage}.{block}" for branch in ("high", "low") for stage in (0, 1) for block in (0, 1)}
    blocks.remove("high.1.1")  # its last convolution shares a level with the one that it is added to
    assert blocks <= {level.name for level in found}
    assert all(len(level.parameters) == 4 for level in found if level.name in blocks)


class Layer(nn.Module):
    """Two residual parts: each is a level, as it is where a cut lies between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.b(torch.relu(self.a(x)))
        return x + self.d(torch.relu(self.c(x)))


def test_residual_parts_of_one_class_stay_levels() -> None:
    found = analyse(nn.Sequential(nn.Linear(4, 4), Layer(), Layer()), (torch.randn(2, 4),)).partition.levels
    assert [len(level.parameters) for level in found] == [2, 4, 4, 4, 4]
