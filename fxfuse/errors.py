"""Every error that fxfuse raises on purpose.

One root class, so that a caller can catch them all; one subclass per kind of mistake, so that a caller can tell
them apart. A message says what is wrong, where (parent, file, key, node, source line) and what to do about it.
"""

import difflib
from collections.abc import Iterable

MANY = 30
"""How many known names a message lists in full."""


class FuseError(Exception):
    """Root of all errors that fxfuse raises on purpose; the command line turns it into one line and exit status 2."""


class SourceError(FuseError):
    """A parent, a weight file or a factory cannot be loaded."""


class WeightsError(SourceError):
    """Weights do not fit the model: missing, unexpected, misshapen, not finite, or unsafe to load."""


class DataError(FuseError):
    """Calibration or evaluation data is missing, empty, misshapen, not finite or wrongly labelled."""


class RecipeError(FuseError):
    """A recipe or an option has an unknown key or a value out of range."""


class TraceError(FuseError):
    """A model cannot be turned into a graph; the message names the line of the user's code that stopped it."""


class GraphError(FuseError):
    """A graph breaks an invariant that a pass relies on."""


class MismatchError(FuseError):
    """Parents (or a parent and the target) have graphs that do not correspond."""


class MethodError(FuseError):
    """A method is unknown, or its needs (data, labels, widths) are not met."""


class DeviceError(FuseError):
    """The requested device is not there."""


class OutputError(FuseError):
    """The output folder cannot be used."""


class ExportError(FuseError):
    """The fused network cannot be written in the requested format, or the written file does not agree with it."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A phrase that helps with a misspelt name: the nearest known one if there is any, and all of them, or the ten
    nearest of very many.

    >>> nearest("kmaens", ["average", "kmeans"])
    "did you mean 'kmeans'? Known: average, kmeans"
    """
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    if len(names) > MANY:
        nearer = difflib.get_close_matches(word, names, n=10, cutoff=0.3) or names[:10]
        return f"{hint}Known: {', '.join(nearer)} and {len(names) - len(nearer)} others"
    return f"{hint}Known: {', '.join(names)}"
