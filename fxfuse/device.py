"""The device that computes, its mixed precision, and what makes a run repeatable."""

import contextlib
import os
import re
from collections.abc import Iterator

import torch

from fxfuse.errors import DeviceError

FORM = re.compile(r"auto|cpu|cuda(:\d+)?")
"""How a user writes a device."""


def pick_device(name: str = "auto") -> torch.device:
    """The device that a user means by ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.

    ``auto`` is the first CUDA device if there is one and the CPU otherwise; ``cuda`` gets an explicit index. Raises
    ``DeviceError`` for a name of another form and for a device that is not there.
    """
    if not FORM.fullmatch(name):
        raise DeviceError(f"The device must be 'auto', 'cpu', 'cuda' or 'cuda:<index>'. Got {name!r}.")
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda", 0) if count else torch.device("cpu")
    index = int(name.partition(":")[2] or 0)
    if count == 0:
        raise DeviceError(f"There is no CUDA device here, but {name!r} was asked for: use 'cpu' or 'auto'.")
    if index >= count:
        there = ", ".join(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(count))
        raise DeviceError(f"There is no device {name!r}; there is {there}.")
    return torch.device("cuda", index)


def describe(device: torch.device) -> str:
    """A device in words: ``cpu (2 threads)``, ``NVIDIA H200 (139.8 GiB)``."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name} ({properties.total_memory / 2**30:.1f} GiB)"
    return f"{device.type} ({torch.get_num_threads()} threads)"


def autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Mixed precision where it is sound: bfloat16 on a CUDA device with native support, nothing anywhere else.

    bfloat16 has the exponent range of float32, so that losses and gradients need no scaling. Emulated bfloat16 is
    left alone because it is slower than float32, and so is the CPU, where it costs accuracy and seldom saves time.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


@contextlib.contextmanager
def deterministic(strict: bool = False) -> Iterator[None]:
    """Inside, torch chooses algorithms that give the same bits each time; afterwards its settings are as before.

    An operator that has no such algorithm on the device at hand warns, or raises ``RuntimeError`` if ``strict``.
    cuBLAS reads its workspace setting when a CUDA context is made, so enter this before the first CUDA operation.
    """
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn
    cudnn_before = (cudnn.deterministic, cudnn.benchmark)
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # set on a module proxy
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        torch.use_deterministic_algorithms(True, warn_only=not strict)
        cudnn.deterministic, cudnn.benchmark = True, False
        # Filling fresh memory finds bugs but costs time, and nothing here reads what it has not written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
        cudnn.deterministic, cudnn.benchmark = cudnn_before
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
