"""fxfuse: a compiler whose input is several trained networks and whose output is one network."""

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
from fxfuse.recipe import FitSettings
from fxfuse.types import (
    Analysis,
    Axes,
    FuseResult,
    Grouping,
    Level,
    LevelReport,
    Partition,
    Program,
    Score,
    Space,
    SpaceStatistics,
)

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "Analysis",
    "Axes",
    "FitSettings",
    "FuseError",
    "FuseResult",
    "Grouping",
    "Level",
    "LevelReport",
    "Partition",
    "Program",
    "Score",
    "Space",
    "SpaceStatistics",
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
