"""Where a result came from: hashes of the files that went in, versions of the packages, the machine.

Nothing here reads a version control system: the same files give the same account wherever they lie.
"""

import hashlib
import platform
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fxfuse.device import describe

PACKAGES = (
    "fxfuse",
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "scikit-learn",
    "pot",
    "safetensors",
    "onnx",
    "onnxruntime",
)
"""The packages whose versions can change a result."""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """The installed version of each package; packages that are not installed are left out."""
    found: dict[str, str] = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment(device: torch.device) -> dict[str, Any]:
    """The machine and the software that a run saw, ready for JSON."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "byteorder": sys.byteorder,
        "device": str(device),
        "device_name": describe(device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def manifest(files: Mapping[str, str], device: torch.device, seed: int, **entries: Any) -> dict[str, Any]:
    """The manifest of a run: the environment, the seed, the hashes of the input ``files`` and any further entries.

    ``files`` maps paths to their SHA-256 (``sha256_of``); ``entries`` must be representable as JSON.
    """
    return {"format": 1, "seed": seed, "environment": environment(device), "inputs": dict(files), **entries}
