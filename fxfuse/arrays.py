"""Arrays in files, mapped into memory where the format allows: only what is read is loaded.

``.npy`` and ``.safetensors`` are mapped always, members of an ``.npz`` that are stored without compression too.
Compressed members are read whole. Nothing is ever unpickled.
"""

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fxfuse.errors import DataError
from fxfuse.factories import beside
from fxfuse.preprocess import as_tensor

SUFFIXES = (".npy", ".npz", ".safetensors")


def read_arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of a file by key; the single array of a ``.npy`` has the key ``inputs``.

    Raises ``DataError`` if the file is missing, damaged, or holds anything but numbers.
    """
    if not path.is_file():
        raise DataError(f"There is no file {path}{beside(path)}")
    try:
        if path.suffix == ".npy":
            return {"inputs": _tensor(np.load(path, mmap_mode="c", allow_pickle=False), path, "the array")}
        if path.suffix == ".npz":
            return {key: _tensor(array, path, key) for key, array in _npz(path).items()}
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a mapping
    except (SafetensorError, OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} is not a readable {path.suffix} file of numbers: {text}") from None


def _tensor(array: np.ndarray, path: Path, key: str) -> Tensor:
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path}: {key!r} holds {array.dtype}, not numbers.")
    return as_tensor(array)


def _npz(path: Path) -> Mapping[str, np.ndarray]:
    arrays = {}
    with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as loaded:
        for info in archive.infolist():
            key = info.filename.removesuffix(".npy")
            mapped = _mapped(path, info) if info.compress_type == zipfile.ZIP_STORED else None
            arrays[key] = loaded[key] if mapped is None else mapped
    return arrays


def _mapped(path: Path, info: zipfile.ZipInfo) -> np.ndarray | None:
    """An uncompressed member, mapped; ``None`` where there is nothing to map."""
    with path.open("rb") as stream:
        # The local header repeats the name and has extra bytes of its own: 30 fixed bytes, lengths at 26 and 28.
        stream.seek(info.header_offset)
        name, extra = struct.unpack("<HH", stream.read(30)[26:30])
        stream.seek(info.header_offset + 30 + name + extra)
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
        else:
            return None
        if dtype.hasobject or 0 in shape or not shape:
            return None
        order = "F" if fortran else "C"
        return np.memmap(path, dtype=dtype, mode="c", offset=stream.tell(), shape=shape, order=order)  # type: ignore[call-overload, no-any-return]  # order is a literal
