"""Which class is which: the union of the parents' classes, and where each parent's classes stand in it.

A label map names a parent's classes in the order of its outputs. Names make the union in the order in which they first
occur; whole numbers are the rows of the union themselves. With ``C`` classes in the union, parent ``p`` has ``C_p``
outputs and ``maps[p][i]`` is the row of its ``i``-th one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxfuse.errors import DataError, MethodError
from fxfuse.types import Grouping

UNKNOWN = -100
"""The label of a sample that has none, or whose class a parent does not know; it does not count anywhere, as in
``torch.nn.functional.cross_entropy``."""

ClassName = str | int


@dataclass(frozen=True, slots=True)
class LabelSpace:
    """``names`` of the union's classes, and ``maps[p][i]``, the union's row of the ``i``-th class of parent ``p``."""

    names: tuple[str, ...]
    maps: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """``C``, the number of classes in the union."""
        return len(self.names)

    @property
    def complete(self) -> bool:
        """Whether every parent knows all classes."""
        return all(len(own) == self.size for own in self.maps)

    def known(self) -> Tensor:
        """``P x C``, true where a parent knows a class."""
        out = torch.zeros(len(self.maps), self.size, dtype=torch.bool)
        for row, own in zip(out, self.maps, strict=True):
            row[list(own)] = True
        return out

    def own_labels(self, parent: int, labels: Tensor) -> Tensor:
        """Labels of the union as a parent's own; :data:`UNKNOWN` where it does not know the class."""
        table = torch.full((self.size,), UNKNOWN, dtype=torch.long)
        table[list(self.maps[parent])] = torch.arange(len(self.maps[parent]))
        valid = (labels >= 0) & (labels < self.size)
        found = table.to(labels.device)[labels.long().clamp(0, self.size - 1)]
        return torch.where(valid, found, torch.full_like(found, UNKNOWN))

    def spread(self, parent: int, rows: Tensor, fill: float = 0.0) -> Tensor:
        """A parent's ``rows x C_p`` as ``rows x C``, with ``fill`` for the classes that it does not know."""
        out = rows.new_full((len(rows), self.size), fill)
        out[:, list(self.maps[parent])] = rows
        return out

    def grouping(self, space: int, shares: Sequence[float]) -> Grouping:
        """The classes as a neuron space: row ``c`` is merged from the parents that know ``c``, by their shares."""
        known = self.known().double()
        weight = known * torch.tensor(shares, dtype=torch.float64)[:, None]
        weight = torch.where(weight.sum(0) > 0, weight, known)  # nobody with a share knows it: all who do
        mass = weight.sum(0)
        merge, unmerge = [], []
        for p, own in enumerate(self.maps):
            places = torch.zeros(self.size, len(own), dtype=torch.float64)
            places[list(own), torch.arange(len(own))] = 1.0
            merge.append(places * (weight[p] / mass)[:, None])
            unmerge.append(places.T.contiguous())
        return Grouping(space, tuple(merge), tuple(unmerge), 0.0)


def label_space(
    labels: Sequence[Sequence[ClassName] | None], parents: Sequence[str], shares: Sequence[float]
) -> LabelSpace | None:
    """The union of the parents' label maps; ``None`` where no parent has one.

    Raises :class:`MethodError` for a map that is missing, empty or names a class twice, for maps of which some hold
    names and others numbers, for numbers that leave a gap, and for a class that only parents of share 0 know.
    """
    if len(labels) != len(parents):
        raise MethodError(f"labels must have one map per parent. Got {len(labels)} for {len(parents)} parents.")
    if all(own is None for own in labels):
        return None
    maps: list[list[ClassName]] = []
    for name, own in zip(parents, labels, strict=True):
        if own is None:
            raise MethodError(f"{name} has no label map, but another parent has: give one per parent, or none.")
        maps.append(_checked(name, own))
    kinds = {type(entry) for own in maps for entry in own}
    if len(kinds) > 1:
        raise MethodError("label maps must be all names or all numbers, because only equal entries are one class.")
    found = list(dict.fromkeys(entry for own in maps for entry in own))
    if kinds == {int}:
        found = sorted(found, key=int)
        gap = next((i for i, entry in enumerate(found) if i != entry), None)
        if gap is not None:
            raise MethodError(
                f"label maps of numbers must name every row of the fused head, from 0. No parent knows class {gap}, "
                f"but some know {found[-1]}; number them without a gap, or give names."
            )
    place = {entry: i for i, entry in enumerate(found)}
    space = LabelSpace(tuple(map(str, found)), tuple(tuple(place[entry] for entry in own) for own in maps))
    counted = space.known()[torch.tensor([share > 0 for share in shares])].any(0)
    if not bool(counted.all()):
        lost = space.names[int((~counted).nonzero()[0])]
        raise MethodError(f"class {lost!r} is known only to parents whose share is 0; give one of them a share.")
    return space


def _checked(name: str, own: Sequence[ClassName]) -> list[ClassName]:
    if isinstance(own, str) or not all(isinstance(entry, str | int) and not isinstance(entry, bool) for entry in own):
        raise MethodError(f"the label map of {name} must be a list of names or of whole numbers. Got {own!r}.")
    entries = list(own)
    if len(entries) < 2:
        raise MethodError(f"the label map of {name} must have one entry per class, two or more. Got {entries}.")
    if any(isinstance(entry, int) and entry < 0 for entry in entries):
        raise MethodError(f"the label map of {name} must not have negative numbers. Got {entries}.")
    twice = next((entry for entry in entries if entries.count(entry) > 1), None)
    if twice is not None:
        raise MethodError(f"the label map of {name} has {twice!r} twice; each of its outputs is another class.")
    return entries


# ----------------------------------------------------------------------------------------------- outputs


def class_count(shape: tuple[int, ...], labels: tuple[int, ...] | None = None) -> int | None:
    """Between how many classes an output of a shape decides; one number per sample decides between two."""
    axis = class_axis(shape, labels)
    return None if axis is None else max(2, shape[axis])


def known(labels: Tensor, classes: int) -> Tensor:
    """Where labels are there. Raises ``DataError`` for one that is no class's number, and not :data:`UNKNOWN`."""
    labels = labels.long()
    there = labels != UNKNOWN
    wrong = there & ((labels < 0) | (labels >= classes))
    if bool(wrong.any()):
        raise DataError(
            f"labels must lie in 0..{classes - 1}, the network having {classes} classes. Got {int(labels[wrong][0])}; "
            f"use {UNKNOWN} for samples without a label"
        )
    return there


def class_axis(shape: tuple[int, ...], labels: tuple[int, ...] | None = None) -> int | None:
    """The dimension of an output that indexes classes, ``None`` if there is none.

    Where there are labels, it is the one that they lack. Otherwise the last one of ``(B, C)`` and ``(B, T, C)``, the
    second one of images and volumes ``(B, C, H, W)``.
    """
    if len(shape) < 2:
        return None
    if labels is not None:
        fitting = [d for d in range(1, len(shape)) if shape[:d] + shape[d + 1 :] == labels]
        if fitting:
            return fitting[0] if len(shape) >= 4 else fitting[-1]
    return 1 if len(shape) >= 4 else len(shape) - 1
