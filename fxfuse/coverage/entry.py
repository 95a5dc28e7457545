"""One row of the catalogue: how a network is made, and what it takes."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from fxfuse.models_zoo.zoo import Input, random_inputs

Example = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Entry:
    """A model of the matrix.

    ``build()`` makes it with random weights. ``inputs`` are what ``forward`` takes, by position, or by the argument's
    name where ``names`` are given. ``submodule`` is the part that is fused. ``note`` says what about the row is not
    the model's usual configuration. ``fast`` rows are the small ones that stand for their family.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    inputs: tuple[Input, ...]
    names: tuple[str, ...] = ()
    submodule: str | None = None
    note: str = ""
    fast: bool = False

    def example(self, batch: int, seed: int = 0) -> Example:
        """Random inputs, as :func:`fxfuse.models_zoo.zoo.random_inputs` draws them."""
        tensors = random_inputs(self.inputs, batch, seed)
        if self.names:
            return dict(zip(self.names, tensors, strict=True))
        return tensors[0] if len(tensors) == 1 else tensors

    @property
    def shape(self) -> str:
        """The inputs' shapes without the batch, as a reader writes them."""
        return ", ".join("x".join(map(str, item.shape)) for item in self.inputs)
