"""Example inputs for a model that is looked at without data: stated as shapes, or guessed, and then said aloud.

A stated input is ``[name=]sizes[:type]``, sizes separated by commas, the batch first: ``1,3,224,224``,
``input_ids=1,16:int64``. Floating inputs are standard normal; integers are drawn from 0 and 1, which any vocabulary
has; booleans are true.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from fxfuse.errors import DataError, RecipeError, nearest
from fxfuse.passes.binding import bind
from fxfuse.passes.checking import outputs_at

Example = tuple[Tensor, ...] | dict[str, Tensor]

TYPES = {name: getattr(torch, name) for name in ("float32", "float64", "float16", "int64", "int32", "uint8", "bool")}
SIDES = (224, 32, 28, 299, 64, 8)
"""Heights and widths that are tried for images, the most usual ones first."""
LENGTH = 16
"""Length of a guessed sequence."""


def example_of(inputs: Sequence[str]) -> Example:
    """Tensors for stated inputs: by name if all have names, else in order. Raises ``RecipeError``."""
    pairs = [_parse(text) for text in inputs]
    names = [name for name, _ in pairs]
    if all(names):
        return dict(pairs)
    if any(names):
        raise RecipeError("`--input` must have a name every time or never; names are those of forward's arguments.")
    return tuple(value for _, value in pairs)


def _parse(text: str) -> tuple[str, Tensor]:
    found = re.fullmatch(r"(?:([A-Za-z_]\w*)=)?(\d+(?:[,x]\d+)*)(?::(\w+))?", text.replace(" ", ""))
    if found is None:
        raise RecipeError(f"`--input` must be sizes such as 1,3,224,224 or input_ids=1,16:int64. Got {text!r}.")
    name, sizes, kind = found[1] or "", found[2], found[3] or "float32"
    if kind not in TYPES:
        raise RecipeError(f"`--input` {text!r} has the unknown type {kind!r}; {nearest(kind, TYPES)}")
    shape = tuple(int(size) for size in re.split("[,x]", sizes))
    if 0 in shape:
        raise RecipeError(f"`--input` sizes must be at least 1. Got {text!r}.")
    return name, random_input(shape, TYPES[kind])


def random_input(shape: tuple[int, ...], kind: torch.dtype = torch.float32) -> Tensor:
    """A repeatable random tensor."""
    generator = torch.Generator().manual_seed(0)
    if kind == torch.bool:
        return torch.ones(shape, dtype=kind)
    if kind.is_floating_point:
        return torch.randn(shape, generator=generator).to(kind)
    return torch.randint(2, shape, generator=generator).to(kind)


def guess(module: nn.Module, subject: str) -> tuple[Tensor, str]:
    """An input that the model takes, and how to state it.

    The first layer with weights says what kind of input it is; sizes that it leaves open are tried. Raises
    ``DataError`` that asks for the input where nothing fits.
    """
    for shape, kind in _candidates(module):
        x = random_input(shape, kind)
        with contextlib.suppress(DataError):
            outputs_at(module, bind(module, x, subject), (x,), subject)
            suffix = "" if kind == torch.float32 else f":{str(kind).removeprefix('torch.')}"
            return x, ",".join(map(str, shape)) + suffix
    raise DataError(
        f"{subject}: say what it takes by --input, for example --input 1,3,224,224; no usual input fits it."
    )


def _candidates(module: nn.Module) -> Iterator[tuple[tuple[int, ...], torch.dtype]]:
    layers = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.Embedding, nn.RNNBase)
    first = next((layer for layer in module.modules() if isinstance(layer, layers)), None)
    kind = torch.float32
    if isinstance(first, nn.Conv2d):
        yield from (((2, first.in_channels, side, side), kind) for side in SIDES)
    elif isinstance(first, nn.Conv1d):
        yield from (((2, first.in_channels, size), kind) for size in (1024, 128, LENGTH))
    elif isinstance(first, nn.Conv3d):
        yield from (((2, first.in_channels, LENGTH, side, side), kind) for side in (112, 32))
    elif isinstance(first, nn.Embedding):
        yield (2, LENGTH), torch.int64
    elif isinstance(first, nn.Linear):
        yield from (((2, first.in_features), kind), ((2, LENGTH, first.in_features), kind))
        # images that the model flattens itself
        for channels in (1, 3):
            side = round((first.in_features / channels) ** 0.5)
            if channels * side * side == first.in_features:
                yield (2, channels, side, side), kind
    elif isinstance(first, nn.RNNBase):
        yield (2, LENGTH, first.input_size), kind
    yield from (((2, channels, side, side), kind) for channels in (3, 1) for side in SIDES)
