"""Programs of ``torch.export`` (``.pt2``), read only after every pickle in them has been found to be plain data.

Such a file is a zip archive: the graph as JSON, raw tensors, and pickles for what is neither (sample inputs, tensors
of unusual layout, custom objects). ``torch.export.load`` unpickles these without restriction, so each is first read
with ``weights_only=True``; compiled libraries and custom objects are refused outright.
"""

import io
import json
import logging
import pickle
import warnings
import zipfile
from pathlib import Path

import torch
from torch import nn

from fxfuse.errors import SourceError
from fxfuse.factories import beside
from fxfuse.weights import unsafe_global

TENSOR_FILES = ("weight_", "tensor_")
"""How the archive names files that hold tensors; other names under its configurations are objects with code."""


def load_program(path: Path, subject: str) -> nn.Module:
    """The module of a ``.pt2`` program.

    Raises ``SourceError``, its message starting with ``subject``, if the file is missing, damaged, of another kind or
    would need code to be executed.
    """
    if not path.is_file():
        raise SourceError(f"{subject}: there is no file {path}{beside(path)}")
    _refuse_code(path, subject)
    log = logging.getLogger("torch.export")  # it would tell of an error before we do, with a traceback
    was_disabled, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the age of the format
            return torch.export.load(path).module()
    except Exception as error:  # torch documents none here, and a damaged archive raises nearly anything
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise SourceError(f"{subject}: {path} cannot be read by torch.export.load, or it is damaged: {text}") from error
    finally:
        log.disabled = was_disabled


def _refuse_code(path: Path, subject: str) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in _pickles(archive):
                content = archive.read(member)
                try:
                    torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
                except pickle.UnpicklingError:
                    raise _NeedsCodeError(unsafe_global(content) or "an object that is no tensor") from None
    except _NeedsCodeError as found:
        what = str(found)
    except (zipfile.BadZipFile, RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(f"{subject}: {path} is not a torch.export program, or it is damaged ({text}).") from None
    else:
        return
    raise SourceError(
        f"{subject}: {path} needs code to be executed when it is loaded ({what}), which is refused; "
        "export the module itself with torch.export, without custom objects."
    )


class _NeedsCodeError(Exception):
    """Something in an archive that cannot be read without executing code; the message says what."""


def _pickles(archive: zipfile.ZipFile) -> list[str]:
    """The archive's members that ``torch.export.load`` would unpickle."""
    names = [info.filename for info in archive.infolist() if info.file_size]
    found = [name for name in names if name.endswith(".pt")]
    for name in names:
        folder, _, leaf = name.rpartition("/")
        if "/aotinductor/" in name:
            raise _NeedsCodeError("a compiled library")
        if leaf == "constants.pkl":
            raise _NeedsCodeError("a TorchScript program")
        if not leaf.endswith("_config.json") or not folder.endswith(("/data/weights", "/data/constants")):
            continue
        for key, payload in json.loads(archive.read(name))["config"].items():
            file = payload["path_name"]
            if not file.startswith(TENSOR_FILES):
                raise _NeedsCodeError(f"the custom object {key!r}")
            if payload.get("use_pickle"):
                found.append(f"{folder}/{file}")
    return found
