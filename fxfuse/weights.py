"""Weight files: reading them without running anything in them, and fitting their entries to a module's.

A weight file is a ``.safetensors`` file or one that ``torch.load(weights_only=True)`` reads: a state dict, or a
mapping that holds one under ``state_dict``, ``model_state_dict``, ``model`` or ``module``. A prefix that a wrapper
puts before every key (``module.`` of data parallelism, ``_orig_mod.`` of compilation) is removed, and said.
"""

import contextlib
import io
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fxfuse.errors import WeightsError
from fxfuse.factories import beside

NESTS = ("state_dict", "model_state_dict", "model", "module")
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")
HARMLESS = r"torch\._utils\.\w+|torch\.\w+|torch\.storage\.\w+|collections\.OrderedDict|_codecs\.encode"
"""What pickled state dicts import: builders of tensors, storages, types."""
SHOWN = 4
"""How many keys a message lists."""


@dataclass(frozen=True, slots=True)
class StateDict:
    """Entries of a weight file by key, and what was done to find them."""

    entries: Mapping[str, Any]
    notes: tuple[str, ...] = ()


# ---------------------------------------------------------------------------------------------------------- reading


def read_weights(path: Path, subject: str) -> StateDict:
    """The state dict in a file, on the CPU. Nothing in the file is executed.

    Raises ``WeightsError``, its message starting with ``subject``, if the file is missing, damaged, of another kind,
    or needs code execution to load.
    """
    if not path.exists():
        raise WeightsError(f"{subject}: there is no weight file {path}{beside(path)}")
    if path.is_dir():
        raise WeightsError(f"{subject}: {path} is a folder; give the weight file in it.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path, subject)
    return _find_state_dict(_torch_load(path, subject), path, subject)


def _read_safetensors(path: Path, subject: str) -> StateDict:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return StateDict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118  # not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{subject}: {path} is damaged, or is no safetensors file ({_brief(error)}); save it anew."
        ) from None


def _torch_load(path: Path, subject: str) -> Any:
    if is_torchscript(path):
        raise WeightsError(
            f"{subject}: {path} is a TorchScript program, which runs code when it is loaded; "
            "save its state_dict() with torch.save or safetensors and give that."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about the version of the pickle format
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_mappable(path))
    except pickle.UnpicklingError:
        if unsafe := unsafe_global(path.read_bytes()):
            raise WeightsError(
                f"{subject}: {path} needs code to be executed when it is loaded ({unsafe}), which is refused; load it "
                "where you trust it and save model.state_dict() with torch.save or safetensors."
            ) from None
        raise WeightsError(
            f"{subject}: {path} is damaged, or is no file of torch.save; save it anew, or give a .safetensors file."
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise WeightsError(
            f"{subject}: {path} is damaged, or is no file of torch.save ({_brief(error)}); save it anew, or give a "
            ".safetensors file."
        ) from None


def _mappable(path: Path) -> bool:
    """Whether the tensors lie in the file as they are in memory: files of torch before 1.6 do not."""
    return zipfile.is_zipfile(path)


def unsafe_global(content: bytes) -> str:
    """The first thing that a pickle would import beyond what state dicts need; empty if it imports nothing else.

    ``content`` is a bare pickle or a zip archive as ``torch.save`` writes it. The pickle is read, not executed.
    """
    if zipfile.is_zipfile(io.BytesIO(content)):
        with contextlib.suppress(zipfile.BadZipFile, KeyError), zipfile.ZipFile(io.BytesIO(content)) as archive:
            content = archive.read(next((n for n in archive.namelist() if n.endswith("data.pkl")), ""))
    strings: list[str] = []
    with contextlib.suppress(ValueError, IndexError, UnicodeDecodeError):  # a damaged pickle ends early
        for operation, argument, _ in pickletools.genops(content):
            if operation.name in ("GLOBAL", "INST"):
                found = str(argument).replace(" ", ".")
            elif operation.name == "STACK_GLOBAL":
                found = ".".join(strings[-2:])
            else:
                if isinstance(argument, str):
                    strings.append(argument)
                continue
            if not re.fullmatch(HARMLESS, found):
                return found
    return ""


def is_torchscript(path: Path) -> bool:
    """Whether a file is a zip archive with a TorchScript program in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(re.fullmatch(r"[^/]+/constants\.pkl", name) for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _find_state_dict(loaded: Any, path: Path, subject: str) -> StateDict:
    notes: tuple[str, ...] = ()
    for _ in range(3):
        if not isinstance(loaded, Mapping) or any(isinstance(value, Tensor) for value in loaded.values()):
            break
        nest = next((key for key in NESTS if isinstance(loaded.get(key), Mapping)), None)
        if nest is None:
            break
        loaded, notes = loaded[nest], (*notes, f"took the state dict under {nest!r}")
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{subject}: {path} holds a {type(loaded).__name__}, not a state dict.")
    if not any(isinstance(value, Tensor) for value in loaded.values()):
        keys = listed(map(str, loaded))
        nests = ", ".join(NESTS)
        raise WeightsError(
            f"{subject}: {path} holds no state dict, neither itself nor under {nests}; its keys: {keys}."
        )
    return StateDict({str(key): value for key, value in loaded.items()}, notes)


# ---------------------------------------------------------------------------------------------------------- fitting


def load_into(
    module: nn.Module, state: StateDict, path: Path, subject: str, call: str = "net.py:build(width=32)"
) -> tuple[str, ...]:
    """Copy the entries into ``module`` and say what was done to make them fit. ``call`` shows in messages how arguments
    are given to what builds the network.

    Raises ``WeightsError`` that lists the first missing, unexpected and misshapen keys and counts all.
    """
    own = module.state_dict(keep_vars=True)
    entries, notes = strip_wrappers(state.entries, own)
    notes = [*state.notes, *notes]
    missing = [key for key in own if key not in entries]
    missing, forgiven = _forgive(missing, own, entries)
    notes += forgiven
    unexpected = [key for key in entries if key not in own]
    misshapen = [key for key, value in entries.items() if key in own and not _same_shape(own[key], value)]
    if missing or unexpected or misshapen:
        raise WeightsError(
            f"{subject}: {path} does not fit: {_differences(missing, unexpected, misshapen, own, entries)}. Build the "
            f"network as it was when the weights were saved, if need be with arguments: {call}."
        )
    kinds = {value.dtype for value in entries.values() if isinstance(value, Tensor) and value.is_floating_point()}
    wanted = {value.dtype for value in own.values() if isinstance(value, Tensor) and value.is_floating_point()}
    if kinds - wanted:
        notes.append(
            f"converted {', '.join(sorted(str(kind).removeprefix('torch.') for kind in kinds - wanted))} entries"
        )
    try:
        module.load_state_dict(dict(entries), strict=False)
    except (RuntimeError, TypeError, ValueError) as error:
        raise WeightsError(f"{subject}: {path} does not fit: {_brief(error)}.") from None
    _leave_in_file(own, entries)
    return tuple(notes)


def _leave_in_file(own: Mapping[str, Any], entries: Mapping[str, Any]) -> None:
    """Let parameters that are bit for bit an entry of the file be that entry: its pages are read when they are needed
    and dropped when memory is short, so that many parents take little of it. What is written to them stays in memory.

    Hooks have had their say by now: entries that they changed are not equal, and stay where they are.
    """
    for key, parameter in own.items():
        value = entries.get(key)
        if isinstance(parameter, nn.Parameter) and isinstance(value, Tensor) and _identical(parameter, value):
            parameter.data = value.detach()


def _identical(one: Tensor, other: Tensor) -> bool:
    alike = one.dtype == other.dtype and one.shape == other.shape and one.stride() == other.stride()
    return alike and torch.equal(one, other)


def strip_wrappers(entries: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The entries without prefixes that a wrapper put before all keys, unless the module's own keys have them too."""
    found, notes = dict(entries), []
    if "n_averaged" in found and "n_averaged" not in own:
        found.pop("n_averaged")
        notes.append("left out the counter of an averaged model")
    while found:
        prefix = next((p for p in WRAPPERS if all(key.startswith(p) for key in found)), None)
        if prefix is None or any(key.startswith(prefix) for key in own):
            break
        found = {key.removeprefix(prefix): value for key, value in found.items()}
        notes.append(f"removed the prefix {prefix!r} from all keys")
    return found, notes


def check_finite(module: nn.Module, subject: str) -> None:
    """Raise ``WeightsError`` that names the first parameter or buffer with NaN or infinite entries and counts them."""
    for key, value in module.state_dict().items():
        if isinstance(value, Tensor) and not is_lazy(value) and (value.is_floating_point() or value.is_complex()):
            finite = torch.isfinite(value)
            if not finite.all():
                bad, nan = int((~finite).sum()), int(torch.isnan(value).sum())
                counts = " and ".join(t for t, n in ((f"{nan} NaN", nan), (f"{bad - nan} infinite", bad - nan)) if n)
                raise WeightsError(
                    f"{subject}: {key!r} has {counts} of {value.numel()} entries; every weight must be finite."
                )


def _forgive(missing: list[str], own: Mapping[str, Any], entries: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Drop keys that a sound file may lack: counters of old batch norms, and tied weights stored under one name."""
    notes = []
    counters = {key for key in missing if key.rpartition(".")[2] == "num_batches_tracked"}
    if counters:
        notes.append(f"{len(counters)} batch-norm counters were not stored")
    stored = {id(value) for key, value in own.items() if key in entries}
    tied = {key for key in missing if id(own[key]) in stored}
    if tied:
        notes.append(f"{listed(sorted(tied))} tied to stored entries")
    return [key for key in missing if key not in counters | tied], notes


def _same_shape(own: Any, value: Any) -> bool:
    if not isinstance(own, Tensor):
        return True
    return isinstance(value, Tensor) and (is_lazy(own) or own.shape == value.shape)


def _differences(
    missing: list[str], unexpected: list[str], misshapen: list[str], own: Mapping[str, Any], entries: Mapping[str, Any]
) -> str:
    parts = []
    if missing:
        parts.append(f"{len(missing)} of {len(own)} keys missing ({listed(_with_shape(missing, own))})")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected ({listed(_with_shape(unexpected, entries))})")
    if misshapen:
        pairs = [f"{key} {shape_of(entries[key])} where the model has {shape_of(own[key])}" for key in misshapen]
        parts.append(f"{len(misshapen)} misshapen ({listed(pairs)})")
    return "; ".join(parts)


def _with_shape(keys: Iterable[str], values: Mapping[str, Any]) -> list[str]:
    return [f"{key} {shape_of(values[key])}" for key in keys]


def shape_of(value: Any) -> str:
    """The shape of a tensor as ``64x3x7x7``, of anything else its type."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return "lazy" if is_lazy(value) else "x".join(map(str, value.shape)) or "scalar"


def listed(words: Iterable[str]) -> str:
    """The first few words, and how many more there are."""
    words = list(words)
    more = f", and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more


def _brief(error: BaseException, limit: int = 200) -> str:
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
