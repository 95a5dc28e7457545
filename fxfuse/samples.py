"""Data as the passes see it: indexable samples, read in batches, never all at once.

A pass asks for samples by index, so that it can split, shuffle and repeat without holding the data in memory. What
kind of file or object the samples come from is the business of ``fxfuse.data``.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fxfuse.types import Batch


class Samples(Protocol):
    """Indexable samples. ``description`` says in a few words what they are, for reports."""

    @property
    def description(self) -> str:
        """A few words."""
        ...

    @property
    def labelled(self) -> bool:
        """Whether ``take`` gives labels."""
        ...

    def __len__(self) -> int: ...

    def take(self, indices: Tensor) -> Batch:
        """The samples at ``indices`` (``int64``, one dimension) as one batch, in that order."""
        ...


class TensorSamples:
    """Samples held as tensors: one per model input, first dimension the sample, and labels if there are any."""

    def __init__(self, inputs: Sequence[Tensor], labels: Tensor | None = None, description: str = "tensors") -> None:
        self.inputs = tuple(inputs)
        self.labels = labels
        self.description = description

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return self.labels is not None

    def __len__(self) -> int:
        return len(self.inputs[0])

    def take(self, indices: Tensor) -> Batch:
        """The samples at ``indices``."""
        return tuple(x[indices] for x in self.inputs), None if self.labels is None else self.labels[indices]


class _Changed:
    """Other samples, as they are but for what a subclass changes."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    @property
    def description(self) -> str:
        """What the others are."""
        return self.samples.description

    @property
    def labelled(self) -> bool:
        """Whether the others have labels."""
        return self.samples.labelled

    def __len__(self) -> int:
        return len(self.samples)

    def take(self, indices: Tensor) -> Batch:
        """The samples at ``indices``."""
        return self.samples.take(indices)


class Subset(_Changed):
    """Some samples of others, by index."""

    def __init__(self, samples: Samples, indices: Tensor) -> None:
        super().__init__(samples)
        self.indices = indices

    @property
    def description(self) -> str:
        """How many of what."""
        return f"{len(self.indices)} of {self.samples.description}"

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, indices: Tensor) -> Batch:
        """The samples at ``indices`` of this part."""
        return self.samples.take(self.indices[indices])


class Ordered(_Changed):
    """Other samples with their inputs in another order: input ``i`` of these is input ``places[i]`` of those."""

    def __init__(self, samples: Samples, places: Sequence[int], names: tuple[str, ...]) -> None:
        super().__init__(samples)
        self.places = tuple(places)
        self.names = names

    def take(self, indices: Tensor) -> Batch:
        """The samples at ``indices``."""
        inputs, labels = self.samples.take(indices)
        return tuple(inputs[place] for place in self.places), labels


class Unlabelled(_Changed):
    """Other samples without their labels."""

    @property
    def description(self) -> str:
        """What the others are, and that their labels are not used."""
        return f"{self.samples.description}, labels not used"

    @property
    def labelled(self) -> bool:
        """Never."""
        return False

    def take(self, indices: Tensor) -> Batch:
        """The inputs at ``indices``."""
        return self.samples.take(indices)[0], None


class Relabelled(_Changed):
    """Other samples whose labels are renumbered: label ``i`` becomes ``table[i]``, a row of ``classes``."""

    def __init__(self, samples: Samples, table: Tensor, classes: Sequence[str]) -> None:
        super().__init__(samples)
        self.table = table
        self.classes = classes

    def take(self, indices: Tensor) -> Batch:
        """The samples at ``indices``."""
        inputs, labels = self.samples.take(indices)
        return inputs, None if labels is None else self.renumbered(labels)

    def renumbered(self, labels: Tensor) -> Tensor:
        """Labels by their new numbers; those that are no class's stay as they are."""
        labels = labels.long()
        known = (labels >= 0) & (labels < len(self.table))
        return torch.where(known, self.table.to(labels.device)[labels.where(known, 0)], labels)


def batches(samples: Samples, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
    """All samples in batches of at most ``size``; in random order if a ``generator`` is given."""
    order = torch.arange(len(samples)) if generator is None else torch.randperm(len(samples), generator=generator)
    for chunk in torch.split(order, size):
        yield samples.take(chunk)


def hold_out(count: int, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The numbers of ``count`` samples in random order, as those to train on and those that only judge.

    The latter are ``share`` of them: at least one and never all. A single sample is trained on, and none judges.
    """
    order = torch.randperm(count, generator=generator)
    held = min(max(1, round(share * count)), count - 1)
    return order[held:], order[:held]
