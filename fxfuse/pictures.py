"""Pictures: a graph of boxes, and the two charts of a report. SVG and PNG, the same bytes for the same content.

Boxes are placed by ``fxfuse.layering`` and drawn by matplotlib without any window or global state. Text stays text in
SVG files, so that a reader can search and copy it.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fxfuse.errors import OutputError
from fxfuse.layering import Drawing, Line, Point, arrange
from fxfuse.types import LevelReport, Score

if TYPE_CHECKING:  # matplotlib takes half a second to import: only those who draw pay for it
    from matplotlib.axes import Axes as PlotAxes
    from matplotlib.figure import Figure
    from matplotlib.path import Path as Outline

INK = "#1f2933"
MUTED = "#5f6b7a"
LINE = "#7b8794"
SKIP = "#b9722b"
PLAIN = ("#f3f4f6", "#9aa5b1")
TITLE_PT, TEXT_PT = 9.5, 8.0
PAD, LINE_HEIGHT, MAX_BOX = 0.1, 0.165, 3.6
MAX_PIXELS = 16_000
ROLES = {"parent": "#8fa8c8", "ensemble": "#7fb08a", "average": "#d9a760", "fused": "#3b6fb6"}

Role = Literal["parent", "ensemble", "average", "fused"]


@dataclass(frozen=True, slots=True)
class Box:
    """A box to draw: ``title`` with ``corner`` at its right, then ``lines`` of (left, right) text.

    ``colour`` numbers the family it belongs to (a neuron space), ``None`` for grey. A ``terminal`` is a small pill
    that carries its title alone: an input or an output of the whole graph.
    """

    key: str
    title: str
    corner: str = ""
    lines: tuple[tuple[str, str], ...] = ()
    colour: int | None = None
    terminal: bool = False


def shade(colour: int | None) -> tuple[str, str]:
    """Fill and edge of a family: hues by the golden ratio, so that neighbours in number differ clearly."""
    if colour is None:
        return PLAIN
    hue = (0.58 + colour * 0.618033988749895) % 1.0
    shades = (colorsys.hls_to_rgb(hue, light, full) for light, full in ((0.945, 0.7), (0.5, 0.45)))
    fill, edge = ("#" + "".join(f"{round(255 * c):02x}" for c in rgb) for rgb in shades)
    return fill, edge


# ------------------------------------------------------------------------------------------- graphs of boxes


def draw_graph(boxes: Sequence[Box], edges: Sequence[tuple[str, str]], path: Path, caption: str = "") -> None:
    """Draw boxes and the edges between their keys (a directed acyclic graph) to an ``.svg`` or ``.png`` file."""
    sizes = {box.key: _size(box) for box in boxes}
    widest = max((sizes[box.key][0] for box in boxes if not box.terminal), default=0.0)
    sizes.update({box.key: (widest, sizes[box.key][1]) for box in boxes if not box.terminal})
    drawing = arrange(sizes, edges)
    margin, head = 0.25, 0.35 if caption else 0.0
    width = max(drawing.size[0], _width(caption, TITLE_PT + 1, bold=True)) + 2 * margin
    height = drawing.size[1] + 2 * margin + head + 0.2
    figure = _figure(width, height)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(-margin, width - margin)
    axes.set_ylim(height - margin - head, -margin - head)
    axes.axis("off")
    if caption:
        axes.text(
            0.0,
            -head,
            _escape(caption),
            fontsize=TITLE_PT + 1,
            color=INK,
            va="center",
            fontweight="bold",
            gid="caption",
        )
    _draw_lines(axes, drawing)
    for box in boxes:
        _draw_box(axes, box, drawing.centres[box.key], sizes[box.key])
    save(figure, path)


def _size(box: Box) -> tuple[float, float]:
    if box.terminal:
        return _width(box.title, TEXT_PT) + 0.35, 0.26
    gap = 0.2
    widths = [_width(box.title, TITLE_PT, bold=True) + _width(box.corner, TEXT_PT) + gap]
    widths += [_width(left, TEXT_PT) + _width(right, TEXT_PT) + (gap if right else 0.0) for left, right in box.lines]
    width = min(max([1.9, *widths]) + 2 * PAD + 0.08, MAX_BOX)
    return width, 0.2 + LINE_HEIGHT * (1 + len(box.lines))


def _width(text: str, points: float, bold: bool = False) -> float:
    """Width of a line of text in inches in matplotlib's own font, the widest that a viewer is likely to use."""
    return sum(_advance(letter, bold) for letter in text) * points / 72


@cache
def _advance(letter: str, bold: bool) -> float:
    """How far one letter moves the pen, in units of the font size."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    font = FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal", size=100)
    both, none = (
        TextPath((0, 0), text.replace("$", r"\$"), prop=font).get_extents().width for text in (f"|{letter}|", "||")
    )
    return float(both - none) / 100


def _elide(text: str, width: float, points: float, *, bold: bool = False, keep_end: bool = False) -> str:
    """``text``, shortened until it fits into ``width`` inches; ``keep_end`` for dotted names, which differ there."""
    if _width(text, points, bold) <= width:
        return text

    def cut(length: int) -> str:
        return "…" + text[len(text) - length :].lstrip(". ") if keep_end else text[:length].rstrip(", ") + "…"

    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        fits = _width(cut(middle), points, bold) <= width
        low, high = (middle, high) if fits else (low, middle - 1)
    return cut(low)


def _draw_box(axes: "PlotAxes", box: Box, centre: Point, size: tuple[float, float]) -> None:
    from matplotlib.patches import FancyBboxPatch, Rectangle

    (x, y), (w, h) = centre, size
    fill, edge = shade(box.colour)
    rounding = h / 2 if box.terminal else 0.05
    style = f"round,pad=0,rounding_size={rounding:.3f}"
    corner = (x - w / 2, y - h / 2)
    axes.add_patch(FancyBboxPatch(corner, w, h, boxstyle=style, fc=fill, ec=edge, lw=0.9, zorder=3, gid=box.key))
    if box.terminal:
        axes.text(x, y, _escape(box.title), fontsize=TEXT_PT, color=INK, ha="center", va="center_baseline", zorder=4)
        return
    axes.add_patch(Rectangle((corner[0], corner[1] + 0.05), 0.045, h - 0.1, fc=edge, lw=0, zorder=4))
    rows = [(box.title, box.corner), *box.lines]
    for i, (left, right) in enumerate(rows):
        at = corner[1] + 0.1 + LINE_HEIGHT * (i + 0.5)
        points, weight = (TEXT_PT, "normal") if i else (TITLE_PT, "bold")
        room = w - 2 * PAD - 0.06
        end = _elide(right, max(room * 0.3, room - _width(left, points, bold=not i) - 0.12), TEXT_PT, keep_end=True)
        start = _elide(left, room - _width(end, TEXT_PT) - (0.12 if end else 0.0), points, bold=not i, keep_end=not i)
        places = (
            (corner[0] + PAD + 0.06, start, points, weight, INK),
            (x + w / 2 - PAD, end, TEXT_PT, "normal", MUTED),
        )
        for (place, text, size_pt, heavy, ink), side in zip(places, ("left", "right"), strict=True):
            if text:
                label = axes.text(place, at, _escape(text), fontsize=size_pt, fontweight=heavy, color=ink, zorder=4)
                label.set(horizontalalignment=side, verticalalignment="center_baseline")


def _escape(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib reads dollars as mathematics


def _draw_lines(axes: "PlotAxes", drawing: Drawing) -> None:
    from matplotlib.patches import FancyArrowPatch, PathPatch

    for line in drawing.lines:
        path = _bent(line) if line.smooth else _rounded(line.points)
        colour = SKIP if line.skip else LINE
        order = 1 if line.skip else 2
        if line.arrow:
            style = "-|>,head_length=3.2,head_width=1.8"
            axes.add_patch(
                FancyArrowPatch(path=path, arrowstyle=style, color=colour, lw=1.0, zorder=order, shrinkA=0, shrinkB=0)
            )
        else:
            axes.add_patch(PathPatch(path, fc="none", ec=colour, lw=1.0, zorder=order))
    if drawing.dots:
        xs, ys = zip(*drawing.dots, strict=True)
        axes.plot(xs, ys, linestyle="none", marker="o", ms=2.8, color=SKIP, mew=0, zorder=2)


def _bent(line: Line) -> "Outline":
    """A path that leaves and enters vertically: one cubic curve between every two points."""
    from matplotlib.path import Path as Outline

    vertices, codes = [line.points[0]], [Outline.MOVETO]
    for (ax, ay), (bx, by) in zip(line.points, line.points[1:], strict=False):
        middle = (ay + by) / 2
        vertices += [(ax, middle), (bx, middle), (bx, by)]
        codes += [Outline.CURVE4] * 3
    return Outline(vertices, codes)


def _rounded(points: Sequence[Point], radius: float = 0.09) -> "Outline":
    """A path of straight runs with rounded corners."""
    from matplotlib.path import Path as Outline

    vertices, codes = [points[0]], [Outline.MOVETO]
    for before, at, after in zip(points, points[1:], points[2:], strict=False):
        vertices += [_toward(at, before, radius), at, _toward(at, after, radius)]
        codes += [Outline.LINETO, Outline.CURVE3, Outline.CURVE3]
    return Outline([*vertices, points[-1]], [*codes, Outline.LINETO])


def _toward(a: Point, b: Point, distance: float) -> Point:
    length = max(abs(b[0] - a[0]) + abs(b[1] - a[1]), 1e-9)  # runs are horizontal or vertical
    share = min(distance / length, 0.5)
    return a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])


# ------------------------------------------------------------------------------------------- charts


def role(name: str) -> Role:
    """What a row of a comparison is, by the start of its name: a parent unless it says otherwise."""
    known: tuple[tuple[str, Role], ...] = (
        ("fused", "fused"),
        ("ensemble", "ensemble"),
        ("average", "average"),
        ("plain average", "average"),
    )
    return next((kind for start, kind in known if name.lower().startswith(start)), "parent")


def draw_scores(scores: Sequence[Score], path: Path) -> bool:
    """One bar per network: accuracy, or agreement with the ensemble where there are no labels.

    Returns False, and draws nothing, if no row carries either figure.
    """
    labelled = any(score.accuracy is not None for score in scores)
    rows = [(s.name, s.accuracy if labelled else s.agreement) for s in scores]
    shown = [(name, 100 * value) for name, value in rows if value is not None]
    if not shown:
        return False
    figure = _figure(6.4, 0.75 + 0.3 * len(shown))
    axes = figure.add_subplot()
    colours = [ROLES[role(name)] for name, _ in shown]
    axes.barh(range(len(shown)), [value for _, value in shown], color=colours, height=0.68, zorder=2)
    for i, (_, value) in enumerate(shown):
        inside = value > 88
        at, side, colour = (value - 0.8, "right", "white") if inside else (value + 0.8, "left", INK)
        axes.text(at, i, f"{value:.2f}", ha=side, va="center_baseline", fontsize=8.5, color=colour, fontweight="bold")
    axes.set_yticks(range(len(shown)), [_escape(name if len(name) <= 34 else name[:33] + "…") for name, _ in shown])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("accuracy, %" if labelled else "same answer as the ensemble, % (no labels were given)")
    _finish(axes, "x")
    save(figure, path)
    return True


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar with its deviation, and a second figure as a mark."""

    name: str
    value: float
    deviation: float = 0.0
    mark: float | None = None


def draw_bars(bars: Sequence[Bar], title: str, path: Path) -> bool:
    """One bar per row with its spread; diamonds for the second figures (after fine-tuning). False without rows."""
    if not bars:
        return False
    figure = _figure(7.2, 0.9 + 0.27 * len(bars))
    axes = figure.add_subplot()
    at = range(len(bars))
    colours = [ROLES[role(bar.name)] for bar in bars]
    axes.barh(at, [bar.value for bar in bars], xerr=[bar.deviation for bar in bars], color=colours, height=0.66,
              zorder=2, error_kw={"ecolor": INK, "elinewidth": 1.2})  # fmt: skip
    marked = [(bar.mark, i) for i, bar in enumerate(bars) if bar.mark is not None]
    if marked:
        xs, ys = zip(*marked, strict=True)
        axes.plot(xs, ys, "D", ms=5, mfc="white", mec=INK, zorder=3, label="fine-tuned")
        axes.legend(frameon=False, fontsize=8.5, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2)
    right = max(max(bar.value + bar.deviation, bar.mark or 0.0) for bar in bars)
    for i, bar in enumerate(bars):
        axes.text(1.02 * right, i, f"{bar.value:.4g}", va="center_baseline", fontsize=8.5, color=INK)
    axes.set_yticks(at, [_escape(bar.name if len(bar.name) <= 34 else bar.name[:33] + "…") for bar in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * right or 1.0)
    axes.set_xlabel(title)
    _finish(axes, "x")
    save(figure, path)
    return True


def draw_levels(levels: Sequence[LevelReport], path: Path) -> bool:
    """Relative error of every level before and after its fit, and what the grouping alone gave up.

    Returns False, and draws nothing, if no level carries any of the three figures.
    """
    shown = [r for r in levels if (r.before, r.after, r.grouping_error) != (None, None, None)]
    if not shown:
        return False
    figure = _figure(min(max(5.0, 1.4 + 0.3 * len(shown)), 16.0), 3.9)
    axes = figure.add_subplot()
    for i, report in enumerate(shown):
        if report.before is not None and report.after is not None:
            axes.plot([i, i], [report.before, report.after], color="#b8c4d3", lw=2.5, zorder=1, solid_capstyle="butt")
    series = (
        ("grouping", "_", "#c2410c", [r.grouping_error for r in shown]),
        ("before fit", "o", "#9aa5b1", [r.before for r in shown]),
        ("after fit", "o", ROLES["fused"], [r.after for r in shown]),
    )
    for label, marker, colour, values in series:
        points = [(i, value) for i, value in enumerate(values) if value is not None]
        if points:
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, linestyle="none", marker=marker, color=colour, ms=5.5, mew=1.8, label=label, zorder=3)
    step = max(1, -(-len(shown) // 50))
    ticks = range(0, len(shown), step)
    names = [shown[i].level for i in ticks]
    axes.set_xticks(ticks, [_escape(n if len(n) <= 22 else "…" + n[-21:]) for n in names], rotation=60, ha="right")
    for tick in axes.get_xticklabels():
        tick.set_rotation_mode("anchor")
    axes.set_xlim(-0.7, len(shown) - 0.3)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("relative error")
    axes.legend(frameon=False, fontsize=8.5, ncols=3, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2)
    _finish(axes, "y")
    save(figure, path)
    return True


def _finish(axes: "PlotAxes", grid: Literal["x", "y"]) -> None:
    axes.tick_params(labelsize=8.5, colors=INK, length=0)
    axes.grid(axis=grid, color="#e4e7eb", lw=0.8, zorder=0)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left" if grid == "x" else "bottom"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#cbd2d9")
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(fontsize=9, color=MUTED)


# ------------------------------------------------------------------------------------------- files


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor="white", layout=None)


def save(figure: "Figure", path: Path) -> None:
    """Write a figure as ``.svg`` or ``.png``, without anything in it that differs from run to run."""
    from matplotlib import rc_context

    suffix = path.suffix.lower()
    if suffix not in (".svg", ".png"):
        raise OutputError(f"cannot draw to {path}: a picture's suffix must be .svg or .png")
    if figure.axes[0].get_position().width != 1.0:
        figure.set_layout_engine("constrained")
    dpi = min(160.0, MAX_PIXELS / max(figure.get_size_inches()))
    metadata = {"Date": None, "Creator": None} if suffix == ".svg" else {"Software": None}
    with rc_context({"svg.hashsalt": "fxfuse", "svg.fonttype": "none"}):
        figure.savefig(path, format=suffix[1:], dpi=dpi, metadata=metadata)
