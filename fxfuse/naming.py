"""Inputs that have names, put where a network wants them.

Data keep their inputs in the order in which they came; a network takes its own in the order of ``forward``'s arguments.
Names say which is which. Data without names are given by position.
"""

from collections.abc import Sequence

from torch import Tensor

from fxfuse.data import input_names
from fxfuse.errors import DataError, nearest
from fxfuse.samples import Samples
from fxfuse.types import Batch


class Ordered:
    """Other samples with their inputs in another order: input ``i`` of these is input ``places[i]`` of those."""

    def __init__(self, samples: Samples, places: Sequence[int], names: tuple[str, ...]) -> None:
        self.samples = samples
        self.places = tuple(places)
        self.names = names

    @property
    def description(self) -> str:
        """What the samples are."""
        return self.samples.description

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return self.samples.labelled

    def __len__(self) -> int:
        return len(self.samples)

    def take(self, indices: Tensor) -> Batch:
        """The samples at ``indices``."""
        inputs, labels = self.samples.take(indices)
        return tuple(inputs[place] for place in self.places), labels


def in_order(samples: Samples, wanted: Sequence[str], what: str = "data") -> Samples:
    """``samples`` with their inputs in the order of a network's, whose names are ``wanted``.

    Data without names stay as they are. Raises ``DataError`` where names are missing or are no input's.
    """
    names = input_names(samples)
    if names is None or names == tuple(wanted):
        return samples
    subject = f"The {what} ({samples.description})"
    missing = [name for name in wanted if name not in names]
    unknown = [name for name in names if name not in wanted]
    if unknown:
        raise DataError(
            f"{subject} has the input {unknown[0]!r}, and the network takes {_listed(wanted)}; "
            f"{nearest(unknown[0], wanted)}, or say by `inputs` which of the data's to take"
        )
    if missing:
        raise DataError(f"{subject} lacks the input {missing[0]!r}: the network takes {_listed(wanted)}.")
    return Ordered(samples, [names.index(name) for name in wanted], tuple(wanted))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
