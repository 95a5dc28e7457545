"""Labels whose classes have names, in one numbering.

Data number the classes that they have: an image folder its sub-folders, by name. The fused head numbers the parents'
classes. Where both have names, labels are renumbered by them.
"""

from collections.abc import Sequence

import torch
from torchvision.datasets import DatasetFolder

from fxfuse.data import class_names, items_of
from fxfuse.errors import DataError
from fxfuse.samples import Relabelled, Samples


def in_label_space(samples: Samples, names: Sequence[str], what: str = "data") -> Samples:
    """Samples whose labels are the rows of a fused head with classes ``names``.

    Data whose classes have names is renumbered by them; other labels are those rows already. Raises ``DataError`` for
    a named class that the head does not have, if it has any of the names.
    """
    own = class_names(samples) if samples.labelled else None
    if own is None or tuple(own) == tuple(names) or not set(own) & set(names):
        return samples
    foreign = next((name for name in own if name not in names), None)
    if foreign is not None:
        raise DataError(
            f"The {what} ({samples.description}) has the class {foreign!r}, which no parent's label map names; "
            f"the classes are {', '.join(names)}."
        )
    return _renumbered(samples, own, names)


def _renumbered(samples: Samples, own: Sequence[str], names: Sequence[str]) -> Samples:
    return Relabelled(samples, torch.tensor([list(names).index(name) for name in own]), tuple(names))


def numbered_alike(calibration: Samples | None, evaluation: Samples | None) -> tuple[Samples | None, Samples | None]:
    """Both data with one number for each class.

    An image folder numbers the classes that it has: where one of two lacks some, the same class has two numbers. Then
    the labels of the one with fewer are renumbered by names. Raises ``DataError`` where each has a class that the other
    lacks.
    """
    if calibration is None or evaluation is None or not (calibration.labelled and evaluation.labelled):
        return calibration, evaluation
    fitted, judged = class_names(calibration), class_names(evaluation)
    if fitted is None or judged is None or fitted == judged:
        return calibration, evaluation
    if set(judged) <= set(fitted):
        return calibration, _renumbered(evaluation, judged, fitted)
    if set(fitted) <= set(judged):
        return _renumbered(calibration, fitted, judged), evaluation
    raise DataError(
        f"The calibration data ({calibration.description}) and the evaluation data ({evaluation.description}) have "
        f"other classes: {_shortened(fitted)} and {_shortened(judged)}. If they are the same under other names, say "
        "`labels: false` of the calibration data; otherwise name the parents' classes (`labels` of each parent)."
    )


def check_named(samples: Samples, num_classes: int, what: str) -> None:
    """Raise ``DataError`` for an image folder that lacks classes of the model, whose numbers are not the model's."""
    names = class_names(samples)
    if not samples.labelled or names is None or not isinstance(items_of(samples), DatasetFolder):
        return
    if len(names) < num_classes:
        raise DataError(
            f"The {what} ({samples.description}) has folders of {len(names)} classes, {_shortened(names)}, and the "
            f"model {num_classes} classes; which of them these are cannot be told. Name the model's, in the order of "
            "its outputs, for each parent (`labels`, --labels), or say `labels: false`."
        )


def _shortened(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
