"""What a network would take in place of inputs that it rejects is found and told."""

import pytest
import torch
from torch import Tensor, nn

from fxfuse.errors import DataError
from fxfuse.passes.binding import bind
from fxfuse.passes.checking import outputs_at
from fxfuse.passes.cures import accepts, ask, cure


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(3, 4)

    def forward(self, tokens: Tensor, table: Tensor) -> Tensor:
        y: Tensor = self.embed(tokens).mean(1) + self.head(table)
        return y


CONV = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2))


@pytest.mark.parametrize(
    ("module", "inputs", "words"),
    [
        (nn.Embedding(9, 4), (torch.zeros(2, 5),), "it takes whole numbers, such as tokens: give them as int64"),
        (nn.Embedding(9, 4), (torch.full((2, 5), 9),), "it takes numbers from 0 to below the size of the table"),
        (nn.Linear(5, 4), (torch.zeros(2, 5, dtype=torch.int64),), "it takes floating-point numbers.*`to_float: true`"),
        (nn.Linear(5, 4), (torch.zeros(2, 5, dtype=torch.bool),), "it takes floating-point numbers.*`to_float: true`"),
        (CONV, (torch.zeros(2, 8, 8, 1),), r"whose channels go first: say `permute: \[2, 0, 1\]`"),
        (CONV, (torch.zeros(2, 3, 8, 8),), "images of one channel: say `channels: grayscale`"),
        (CONV, (torch.zeros(2, 8, 8),), "images of one channel: say `channels: grayscale`"),
        (nn.Conv2d(3, 2, 3), (torch.zeros(2, 1, 8, 8),), "images of three channels: say `channels: rgb`"),
        (nn.Linear(64, 2), (torch.zeros(2, 1, 8, 8),), "one dimension per sample: say `flatten: true`"),
        (nn.Linear(64, 2), (torch.zeros(2, 63),), "give inputs of the shape and type that it was trained with"),
        (Both(), (torch.zeros(2, 5), torch.zeros(2, 3)), "as 'tokens' it takes whole numbers"),
        (
            Both(),
            (torch.ones(2, 5, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64)),
            "as 'table' it takes floating-point numbers",
        ),
    ],
)
def test_a_cure_is_found_by_trying(module: nn.Module, inputs: tuple[Tensor, ...], words: str) -> None:
    bound = bind(module, inputs, "net")
    assert not accepts(module, bound, inputs)
    with pytest.raises(DataError, match=rf"^net rejects inputs of shape .*; .*{words}"):
        outputs_at(module, bound, inputs, "net")


def test_inputs_are_not_changed_by_asking() -> None:
    module = nn.ReLU(inplace=True)
    x = -torch.ones(2, 3)
    bound = bind(module, x, "net")
    assert torch.equal(ask(module, bound, (x,)), torch.zeros(2, 3))
    assert torch.equal(x, -torch.ones(2, 3))
    assert cure(module, bound, (x,)).startswith("it takes")  # whatever is taken, types come first
