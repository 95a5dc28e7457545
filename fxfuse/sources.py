"""Parents from wherever they lie: user code by name, torchvision builders, exported programs, modules in Python.

The code of a parent is the user's and runs; a weight file is data and never does. A ``.pt2`` program is an archive
of tensors and a graph; any pickle in it that would need code is refused before ``torch.export`` sees the file.
"""

import contextlib
import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

# torchvision does not mark its re-exports.
from torchvision.models import get_model_builder, list_models  # type: ignore[attr-defined]

from fxfuse.errors import SourceError, nearest
from fxfuse.factories import Reference
from fxfuse.programs import load_program
from fxfuse.provenance import sha256_of
from fxfuse.recipe import ParentSpec, TargetSpec, parent_name, split_source
from fxfuse.types import parameter_count
from fxfuse.weights import StateDict, check_finite, load_into, read_weights

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")


@dataclass(frozen=True, slots=True)
class LoadedParent:
    """A parent that is ready to be traced.

    ``module`` is in evaluation mode where its kind has modes. ``files`` maps the files that it came from to their
    SHA-256. ``description`` says in a line what it is, ``notes`` what was done to make its weights fit.
    """

    name: str
    module: nn.Module
    description: str
    files: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def load_parent(source: ParentSpec | str | Path | nn.Module, name: str | None = None) -> LoadedParent:
    """A parent from its spec, its source alone, or a module as it stands.

    Relative paths are taken from the working folder. Raises ``SourceError`` if the code cannot be found or fails, and
    ``WeightsError`` if the weights cannot be read, do not fit or are not finite.
    """
    if isinstance(source, nn.Module):
        name = name or type(source).__name__
        return _finish(name, source, f"{type(source).__name__} given in Python", {}, ())
    spec = source if isinstance(source, ParentSpec) else ParentSpec(source=str(source))
    name = name or parent_name(spec)
    subject = f"parent {name!r}"
    module, files = build(spec.source, spec.args, subject)
    description, notes = spec.source, ["no weights given: as its source made it"]
    if spec.weights is not None:
        path = Path(spec.weights).expanduser()
        notes = list(load_into(module, _weights_in(path, subject), path, subject, _example_call(spec.source)))
        files = {**files, str(path): sha256_of(path)}
        description += f" with {path.name}"
    elif spec.source.endswith(".pt2"):
        notes = []
    return _finish(name, module, description, files, tuple(notes))


def _weights_in(path: Path, subject: str) -> StateDict:
    """The state dict in a weight file, or in an exported program."""
    if path.suffix != ".pt2":
        return read_weights(path, subject)
    return StateDict(load_program(path, subject).state_dict(), (f"took the weights of the program {path.name}",))


def _example_call(source: str) -> str:
    """How the source would be called with an argument, as an example in messages."""
    place, _, factory = split_source(source)
    if not factory:
        return "net.py:build(width=32)"
    return f"{Path(place).name}:{factory}({'num_classes=10' if place == 'torchvision' else 'width=32'})"


def load_target(spec: TargetSpec) -> LoadedParent | None:
    """The target architecture that a spec names by its source, or ``None`` where it gives a width."""
    if spec.source is None:
        return None
    name = split_source(spec.source)[2] or Path(spec.source).stem
    module, files = build(spec.source, spec.args, f"target {name!r}")
    return _finish(name, module, spec.source, files, (), "target")


def build(source: str, args: Mapping[str, Any], subject: str) -> tuple[nn.Module, dict[str, str]]:
    """The module that ``source`` stands for, and the hashes of the files behind it."""
    place, _, factory = split_source(source)
    if factory and place == "torchvision":
        return _torchvision(source, args, subject), {}
    if not factory:
        path = Path(source).expanduser()
        if path.suffix != ".pt2":
            raise SourceError(f"{subject}: {_advice(source)}")
        if args:
            raise SourceError(f"{subject}: the program {path} takes no `args`.")
        return load_program(path, subject), {str(path): sha256_of(path)}
    made = Reference(source, subject, SourceError).make(args)
    if not isinstance(made.value, nn.Module):
        raise SourceError(f"{subject}: {source} gives a {type(made.value).__name__}, not a torch.nn.Module.")
    return made.value, {} if made.file is None else {str(made.file): sha256_of(made.file)}


def _finish(
    name: str,
    module: nn.Module,
    description: str,
    files: Mapping[str, str],
    notes: tuple[str, ...],
    role: str = "parent",
) -> LoadedParent:
    check_finite(module, f"{role} {name!r}")
    with contextlib.suppress(NotImplementedError):  # an exported program has its mode baked in
        module.eval()
    return LoadedParent(name, module, f"{description} ({parameter_count(module):,} parameters)", dict(files), notes)


def _advice(source: str) -> str:
    """Why a source without a factory cannot be used, and what to write instead."""
    path = Path(source).expanduser()
    if path.suffix in WEIGHT_SUFFIXES:
        return f"{source} holds weights alone; give it under `weights`, and the code of its network as the source."
    if path.suffix == ".onnx":
        return f"{source} is an ONNX file, which cannot be fused; give the torch module that it was exported from."
    if path.suffix == ".py":
        return f"say which factory in the file: '{source}:factory'."
    if path.is_dir():
        own = path / "model.pt2"
        hint = f"the fused network in it is {own}" if own.is_file() else "name the code or the program in it"
        return f"{source} is a folder; {hint}."
    if source in list_models():
        return f"{source!r} is not a source; did you mean 'torchvision:{source}'?"
    return f"{source!r} is not of the form 'module:factory', 'file.py:factory', 'torchvision:name' or 'program.pt2'."


def _torchvision(source: str, args: Mapping[str, Any], subject: str) -> nn.Module:
    """A torchvision builder's module, never with downloaded weights."""
    name = split_source(source)[2]
    known = list_models()
    if name not in known:
        hint, question, _ = nearest(name, known).partition("? Known")
        end = f"{hint}?" if question else "see torchvision.models.list_models()."
        raise SourceError(f"{subject}: torchvision has no model {name!r}; {end}")
    builder = get_model_builder(name)
    reference = Reference(source, subject, SourceError)
    positional, keywords = reference.arguments(args)
    for key in ("weights", "weights_backbone", "pretrained", "pretrained_backbone"):
        if keywords.pop(key, None):
            raise SourceError(
                f"{subject}: {key!r} would download weights; give them as a file under `weights` instead."
            )
    for key in ("weights", "weights_backbone"):
        if key in inspect.signature(builder).parameters:
            keywords[key] = None
    with warnings.catch_warnings():
        # GoogLeNet and Inception announce a future change of their random initialisation.
        warnings.simplefilter("ignore", FutureWarning)
        module = reference.call(builder, name, positional, keywords)
    assert isinstance(module, nn.Module)
    return module
