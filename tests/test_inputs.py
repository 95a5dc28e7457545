import pytest
import torch
from torch import nn

from fxfuse.errors import DataError, RecipeError
from fxfuse.inputs import as_tokens, example_of, guess


def test_inputs_are_tensors_of_the_stated_sizes_and_types() -> None:
    (image, mask) = example_of(["2,3,8,8", "2x5:bool"])
    assert isinstance(image, torch.Tensor)
    assert isinstance(mask, torch.Tensor)
    assert (image.shape, image.dtype) == ((2, 3, 8, 8), torch.float32)
    assert (mask.shape, mask.dtype) == ((2, 5), torch.bool)
    again = example_of(["2,3,8,8"])
    assert isinstance(again, tuple)
    assert torch.equal(again[0], image)


def test_types_go_by_the_names_that_torch_has_for_them_too() -> None:
    (x,) = example_of(["2,3:long"])
    assert isinstance(x, torch.Tensor)
    assert x.dtype == torch.int64


def test_tokens_that_were_stated_without_a_type_are_found() -> None:
    module = Tokens(7)
    assert as_tokens(module, ["2,7"], "net") == ["2,7:int64"]
    assert as_tokens(module, ["tokens=2,7"], "net") == ["tokens=2,7:int64"]
    assert as_tokens(module, ["2,8"], "net") is None
    assert as_tokens(module, [], "net") is None
    two = Two()
    assert as_tokens(two, ["image=2,3", "tokens=2,7"], "net") == ["image=2,3", "tokens=2,7:int64"]


class Two(nn.Module):
    """A vector and tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), Tokens(7)

    def forward(self, image: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.cat([self.first(image), self.second(tokens)], 1)
        return y


def test_named_inputs_are_bound_by_name() -> None:
    example = example_of(["ids=2,7:int64", "mask=2,7"])
    assert isinstance(example, dict)
    assert list(example) == ["ids", "mask"]
    assert example["ids"].dtype == torch.int64
    assert set(example["ids"].unique().tolist()) <= {0, 1}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["two"], "must be sizes"),
        (["2,0"], "at least 1"),
        (["2,3:flaot32"], "did you mean 'float32'"),
        (["a=2,3", "2,3"], "a name every time or never"),
    ],
)
def test_mistakes_are_explained(inputs: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        example_of(inputs)


class Tokens(nn.Module):
    """Tokens in sentences of one length, which only a parameter tells; the first layer is not the embedding."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.positions = nn.Parameter(torch.zeros(1, length, 4))
        self.embed = nn.Embedding(9, 4)

    def forward(self, tokens: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        y: torch.Tensor = self.head((self.embed(tokens) + self.positions).mean(1) * scale)
        return y


@pytest.mark.parametrize(
    ("module", "stated"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(784, 3)), "2,784"),
        (nn.Sequential(nn.Unflatten(1, (1, 7)), nn.Conv1d(1, 2, 3)), "2,3,224,224"),
        (nn.Conv2d(5, 2, 3), "2,5,224,224"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 2)), "2,3,32,32"),
        (nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)), "2,16:int64"),
        (nn.GRU(6, 3, batch_first=True), "2,16,6"),
        (nn.Conv3d(2, 1, 3), "2,2,16,112,112"),
        (Tokens(7), "2,7:int64"),
    ],
)
def test_a_guess_is_an_input_that_the_model_takes(module: nn.Module, stated: str) -> None:
    if isinstance(module, nn.Sequential) and isinstance(module[0], nn.Unflatten):
        with pytest.raises(DataError, match=r"^net: no usual input fits Sequential.forward\(input\); say it\.$"):
            guess(module, "net", "say it")
        return
    x, words = guess(module.eval(), "net", "say it")
    assert words == stated
    module(x)
