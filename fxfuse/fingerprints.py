"""What a run reads, as hashes: by them a resumed run knows that nothing has changed."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import torch

from fxfuse.provenance import sha256_of
from fxfuse.recipe import DataSpec, split_source
from fxfuse.samples import Samples, batches

WHOLE = 2**30
"""Bytes in a folder of data up to which its files' contents are hashed; above, their names and sizes are."""


def fingerprint(samples: Samples) -> str:
    """SHA-256 of all samples as the network sees them: types, shapes and values of the inputs, and the labels."""
    digest = hashlib.sha256()
    for inputs, labels in batches(samples, 256):
        for x in inputs if labels is None else (*inputs, labels):
            digest.update(f"{x.dtype}{tuple(x.shape)}".encode())
            digest.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def data_hashes(spec: DataSpec) -> dict[str, str]:
    """The hashes of the files and folders that a data set was read from, as far as they are known."""
    place, _, factory = split_source(spec.source)
    places = [spec.root] if spec.root else []
    if not factory:
        places.append(spec.source)
    elif place.endswith(".py"):
        places.append(place)
    elif place != "torchvision" and (found := find_spec(place)) is not None and found.has_location:
        places.append(str(found.origin))
    if isinstance(spec.labels, str) and spec.labels.endswith(".npy"):
        places.append(spec.labels)
    paths = [(place, Path(place).expanduser()) for place in places]
    return {place: _hash_folder(path) if path.is_dir() else sha256_of(path) for place, path in paths}


def _hash_folder(folder: Path) -> str:
    """A hash of all files below a folder: of their contents, or of their names and sizes where that is too much."""
    sizes = {path: path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    whole = sum(sizes.values()) <= WHOLE
    digest = hashlib.sha256()
    for path, size in sizes.items():
        content = sha256_of(path) if whole else str(size)
        digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return ("contents:" if whole else "names and sizes:") + digest.hexdigest()
