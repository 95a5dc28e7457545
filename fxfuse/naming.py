"""Inputs that have names, put where a network wants them.

Data keep their inputs in the order in which they came; a network takes its own in the order of ``forward``'s arguments.
Names say which is which. Data without names are given by position.
"""

from collections.abc import Sequence

import torch

from fxfuse.data import input_names
from fxfuse.errors import DataError, nearest
from fxfuse.samples import Ordered, Samples


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


def with_inputs_of(calibration: Samples, evaluation: Samples) -> Samples:
    """The evaluation data with its inputs in the order that the calibration data has them in.

    Raises ``DataError`` where the two have other inputs.
    """
    (fitted, _), (judged, _) = (
        samples.take(torch.arange(min(1, len(samples)))) for samples in (calibration, evaluation)
    )
    names, own = input_names(calibration), input_names(evaluation)
    if names is not None and own is not None:
        return in_order(evaluation, names, "evaluation data")
    if len(fitted) == len(judged):
        return evaluation
    said = [
        f"{samples.description} has {', '.join(called or (str(tuple(x.shape[1:])) for x in inputs))}"
        for samples, called, inputs in ((calibration, names, fitted), (evaluation, own, judged))
    ]
    raise DataError(
        f"The evaluation data has other inputs than the calibration data: {'; '.join(said)}. What is no label (one "
        "integer per sample) counts as an input; for targets of another kind see `score` in docs/verify.md."
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
