"""Example inputs for a model that is looked at without data: stated as shapes, or guessed, and then said aloud.

A stated input is ``[name=]sizes[:type]``, sizes separated by commas, the batch first: ``1,3,224,224``,
``input_ids=1,16:int64``; the type is float32 where it is left out. Floating inputs are standard normal; integers are
drawn from 0 and 1, which any vocabulary has; booleans are true.
"""

import contextlib
import inspect
import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from fxfuse.errors import DataError, RecipeError, nearest
from fxfuse.passes.binding import bind
from fxfuse.passes.cures import accepts

Example = tuple[Tensor, ...] | dict[str, Tensor]

TYPES = {name: getattr(torch, name) for name in ("float32", "float64", "float16", "int64", "int32", "uint8", "bool")}
ALIASES = {"float": "float32", "double": "float64", "half": "float16", "long": "int64", "int": "int32"}
"""What torch calls them too."""
SIDES = (224, 32, 28, 299, 64, 8)
"""Heights and widths that are tried for images, the most usual ones first."""
LENGTH = 16
"""Length of a guessed sequence."""
TRIES = 12
"""Lengths of a sequence of tokens that are tried."""


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
    kind = ALIASES.get(kind, kind)
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


def as_tokens(module: nn.Module, inputs: Sequence[str], subject: str) -> list[str] | None:
    """Stated inputs with the type int64 where none was stated, if the model takes those: all of them, or one alone."""
    open_ = [place for place, text in enumerate(inputs) if ":" not in text]
    for places in (open_, *([place] for place in open_ if len(open_) > 1)):
        tried = [f"{text}:int64" if place in places else text for place, text in enumerate(inputs)]
        if places and _takes(module, example_of(tried), subject):
            return tried
    return None


def guess(module: nn.Module, subject: str, how: str) -> tuple[Tensor, str]:
    """An input that the model takes, and how to state it.

    The first layer with weights says what kind of input it is; sizes that it leaves open are tried. Raises
    ``DataError`` where nothing fits; ``how`` says in it how the user can name the input.
    """
    for shape, kind in _candidates(module):
        x = random_input(shape, kind)
        if _takes(module, (x,), subject):
            suffix = "" if kind == torch.float32 else f":{str(kind).removeprefix('torch.')}"
            return x, ",".join(map(str, shape)) + suffix
    signature = f"{type(module).__name__}.forward({', '.join(_arguments(module))})"
    raise DataError(f"{subject}: no usual input fits {signature}; {how}.")


def _takes(module: nn.Module, example: Example, subject: str) -> bool:
    with contextlib.suppress(DataError):
        bound = bind(module, example, subject)
        return accepts(module, bound, bound.tensors)
    return False


def _arguments(module: nn.Module) -> list[str]:
    """What ``forward`` takes, by name; those that need not be given with an equals sign."""
    parameters = inspect.signature(module.forward).parameters.values()
    return [str(p.replace(annotation=inspect.Parameter.empty)) for p in parameters]


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
    elif isinstance(first, nn.Linear):
        yield from _for_linear(first.in_features)
    elif isinstance(first, nn.RNNBase):
        yield (2, LENGTH, first.input_size), kind
    if any(isinstance(layer, nn.Embedding) for layer in module.modules()):
        yield from (((2, length), torch.int64) for length in _lengths(module))
    yield from (((2, channels, side, side), kind) for channels in (3, 1) for side in SIDES)


def _for_linear(features: int) -> Iterator[tuple[tuple[int, ...], torch.dtype]]:
    """Vectors, sequences of them, and images that the model flattens itself."""
    yield (2, features), torch.float32
    yield (2, LENGTH, features), torch.float32
    for channels in (1, 3):
        side = round((features / channels) ** 0.5)
        if channels * side * side == features:
            yield (2, channels, side, side), torch.float32


def _lengths(module: nn.Module) -> list[int]:
    """Lengths of sequences of tokens: a usual one, then the sizes of what the model's own code holds, among which is
    the length where positions are learned or masked."""
    found = {LENGTH: None, LENGTH // 2: None}
    for part in module.modules():
        own = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
        if type(part).__module__.startswith("torch.nn."):
            own = [x for x in own if isinstance(part, nn.Embedding)]
        found.update(dict.fromkeys(size for x in own for size in x.shape if 1 < size <= 4096))
    return list(found)[:TRIES]
