"""fxfuse: a compiler whose input is several trained networks and whose output is one network.

The names below are loaded when they are first asked for, so that ``fxfuse --help`` need not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxfuse.errors import FuseError
    from fxfuse.passes.axes import axes
    from fxfuse.passes.axis_rules import axis_rule
    from fxfuse.passes.calibrate import calibrate
    from fxfuse.passes.correspond import correspond
    from fxfuse.passes.group import group
    from fxfuse.passes.partition import partition
    from fxfuse.passes.rewrite import rewrite
    from fxfuse.passes.trace import trace
    from fxfuse.pipeline import analyse, fuse
    from fxfuse.presets import METHODS
    from fxfuse.recipe import FinetuneSettings, FitSettings
    from fxfuse.types import Analysis, FuseResult, Grouping, Level, Partition, Program, Space

__version__ = "0.1.0"

_HOME = {
    "FuseError": "fxfuse.errors",
    "axes": "fxfuse.passes.axes",
    "axis_rule": "fxfuse.passes.axis_rules",
    "calibrate": "fxfuse.passes.calibrate",
    "correspond": "fxfuse.passes.correspond",
    "group": "fxfuse.passes.group",
    "partition": "fxfuse.passes.partition",
    "rewrite": "fxfuse.passes.rewrite",
    "trace": "fxfuse.passes.trace",
    "analyse": "fxfuse.pipeline",
    "fuse": "fxfuse.pipeline",
    "METHODS": "fxfuse.presets",
    "FinetuneSettings": "fxfuse.recipe",
    "FitSettings": "fxfuse.recipe",
    "Analysis": "fxfuse.types",
    "FuseResult": "fxfuse.types",
    "Grouping": "fxfuse.types",
    "Level": "fxfuse.types",
    "Partition": "fxfuse.types",
    "Program": "fxfuse.types",
    "Space": "fxfuse.types",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fxfuse' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "METHODS",
    "Analysis",
    "FinetuneSettings",
    "FitSettings",
    "FuseError",
    "FuseResult",
    "Grouping",
    "Level",
    "Partition",
    "Program",
    "Space",
    "analyse",
    "axes",
    "axis_rule",
    "calibrate",
    "correspond",
    "fuse",
    "group",
    "partition",
    "rewrite",
    "trace",
]
