"""State dicts as safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.export import ExportedProgram

from fxfuse.errors import ExportError, OutputError
from fxfuse.export.programs import Source
from fxfuse.export.tools import first_line, staged

CLASSES_KEY = "fxfuse.classes"
"""Where a file's metadata, ONNX or safetensors, holds the names of the classes."""


def to_safetensors(module: Source, path: str | Path, metadata: Mapping[str, str] | None = None) -> Path:
    """Write the state dict. Entries that share storage are written once each, so that any reader can load the file
    with ``strict=True``; the metadata's ``tied`` says which they were.

    Raises ``ExportError`` for state that is no tensor, ``OutputError`` if ``path`` cannot be written.
    """
    path = Path(path)
    state = module.state_dict if isinstance(module, ExportedProgram) else module.state_dict()
    owners: dict[tuple[object, ...], list[str]] = {}
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ExportError(
                f"'{name}' in the state dict is a {type(value).__name__}, not a tensor, and safetensors holds "
                "nothing else; register tensors as buffers, and keep other state out of it"
            )
        if value.numel():
            key = (value.untyped_storage().data_ptr(), value.storage_offset(), tuple(value.shape))
            owners.setdefault(key, []).append(name)
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
    tied = [names for names in owners.values() if len(names) > 1]
    words = {**(metadata or {}), "format": "pt", **({"tied": json.dumps(tied)} if tied else {})}
    with staged(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(tensors, temporary, metadata=words)
        except SafetensorError as error:  # which the system's errors come as
            raise OutputError(f"cannot write {path}: {first_line(error)}") from error
        temporary.chmod(mode)  # the library gives its files to their owner alone
    return path
