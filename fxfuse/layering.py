"""Where the boxes and lines of a layered drawing of a directed acyclic graph go (no drawing here, no Graphviz).

Ranks: ``rank(v) = 1 + max rank(u)`` over edges ``u -> v``. An edge that spans more than one rank runs in a *lane*: one
vertical line per source, shared by all its distant targets, that takes a place of its own in every rank it passes.
Within a rank, places are ordered by the weighted barycentre of their neighbours (Sugiyama, Tagawa, Toda 1981), and
coordinates minimise ``sum w_uv (x_u - x_v)^2`` subject to the order and the gaps, one rank at a time; that
sub-problem is an isotonic regression, solved exactly by pooling adjacent violators. One longest chain of boxes is held
at ``x = 0``. Where all boxes stand in single file there is an exact answer: lanes nest at the right, the latest source
innermost. Long drawings are folded into columns where a single edge source crosses. All lengths are in inches, y
grows downwards.
"""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import networkx as nx

Point = tuple[float, float]
Size = tuple[float, float]

BOX_GAP = 0.3
LANE_GAP = 0.1
RANK_GAP = 0.3
TRACK_GAP = 0.1
COLUMN_GAP = 0.55
ROUNDS = 24

# How strongly the two ends of a line pull at each other: lanes stay straight first, then chains of boxes.
LANE_PULL = 8.0
CHAIN_PULL = 4.0
ENTER_PULL = 1.0
LEAVE_PULL = 0.05
SPINE_PULL = 1e5


@dataclass(frozen=True, slots=True)
class Line:
    """A drawn line through ``points``: ``smooth`` lines bend from one end to the other, others have right angles."""

    points: tuple[Point, ...]
    arrow: bool
    smooth: bool
    skip: bool


@dataclass(frozen=True, slots=True)
class Drawing:
    """Centres of the boxes, the lines between them, the dots where a lane is tapped, and the size of the whole."""

    centres: Mapping[str, Point]
    lines: tuple[Line, ...]
    dots: tuple[Point, ...]
    size: Size


@dataclass(slots=True)
class _Column:
    """One column: ``rows`` hold boxes (``str``) and lane places (``(source, row)``) from left to right."""

    rows: list[list[Hashable]]
    row_of: dict[str, int]
    edges: list[tuple[str, str]]
    sizes: dict[Hashable, Size]
    pulls: dict[Hashable, list[tuple[Hashable, float]]] = field(default_factory=dict)
    x: dict[Hashable, float] = field(default_factory=dict)
    top: list[float] = field(default_factory=list)
    height: list[float] = field(default_factory=list)


def ranks(graph: "nx.DiGraph[str]") -> dict[str, int]:
    """The rank of every node; a node without predecessors stands just above its first reader."""
    rank = {node: r for r, layer in enumerate(nx.topological_generations(graph)) for node in layer}
    for node in graph:
        if graph.in_degree(node) == 0 and graph.out_degree(node) > 0:
            rank[node] = min(rank[reader] for reader in graph.successors(node)) - 1
    return rank


def fold_points(rank: Mapping[str, int], edges: Sequence[tuple[str, str]]) -> list[int]:
    """Ranks after which the drawing starts a new column: single-source cuts, spaced so that the whole is not tall."""
    total = max(rank.values(), default=0) + 1
    broad = max(Counter(rank.values()).values(), default=1)
    columns = max(1, round(math.sqrt(0.3 * total / broad)))
    rows = max(10, math.ceil(total / columns))
    if total <= 13 or columns == 1:
        return []
    possible = [r for r in range(total - 1) if _single_source(rank, edges, r)]
    folds: list[int] = []
    start = 0
    while total - start > rows + 2:
        fitting = [r for r in possible if start + rows // 2 <= r < start + rows + 2]
        # past the wanted length, folding is worth it only if a good part of the drawing still follows
        later = [r for r in possible if start + rows + 2 <= r < total - rows // 3]
        if not (fitting or later):
            break
        cut = min(fitting, key=lambda r: abs(r + 1 - start - rows)) if fitting else later[0]
        folds.append(cut)
        start = cut + 1
    return folds


def _single_source(rank: Mapping[str, int], edges: Sequence[tuple[str, str]], cut: int) -> bool:
    sources = {u for u, v in edges if rank[u] <= cut < rank[v]}
    alone = [node for node, r in rank.items() if r == cut]
    return len(sources) == 1 and sources == set(alone)


def arrange(sizes: Mapping[str, Size], edges: Sequence[tuple[str, str]]) -> Drawing:
    """Lay out boxes of the given sizes (width, height) so that every edge points downwards or to the next column."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(sizes)
    graph.add_edges_from(edges)
    rank = ranks(graph)
    folds = fold_points(rank, edges)
    bounds = [-1, *folds, max(rank.values(), default=0)]
    centres: dict[str, Point] = {}
    lines: list[Line] = []
    dots: list[Point] = []
    left, bottom, previous = 0.0, 0.0, None
    for first, last in pairwise(bounds):
        members = {node: r - first - 1 for node, r in rank.items() if first < r <= last}
        entry = next((u for u, v in edges if u not in members and v in members), None)
        column = _column(members, sizes, edges, entry)
        _order(column)
        _place(column)
        width, height = _shift(column, left)
        _collect(column, entry, centres, lines, dots)
        if previous is not None and entry is not None:
            lines.append(_connector(previous, centres[entry], sizes[entry], column.x[entry], left))
        left += width + COLUMN_GAP
        bottom = max(bottom, height)
        previous = height
    return Drawing(centres, tuple(lines), tuple(dots), (max(left - COLUMN_GAP, 0.0), bottom))


def _column(
    members: Mapping[str, int], sizes: Mapping[str, Size], edges: Sequence[tuple[str, str]], entry: str | None
) -> _Column:
    """The rows of one column with a place for every lane; ``entry`` is the last column's source, of no size here."""
    row_of = {node: r + (entry is not None) for node, r in members.items()}
    own: dict[Hashable, Size] = {node: sizes[node] for node in members}
    if entry is not None:
        row_of[entry] = 0
        own[entry] = (0.0, 0.0)
    inside = [(u, v) for u, v in edges if u in row_of and v in members]
    rows: list[list[Hashable]] = [[] for _ in range(max(row_of.values(), default=-1) + 1)]
    for node, row in row_of.items():
        rows[row].append(node)
    column = _Column(rows, row_of, inside, own)
    reach = {u: max(row_of[v] for s, v in inside if s == u) for u, _ in inside}
    for source, last in reach.items():
        for row in range(row_of[source] + 1, last):
            rows[row].append((source, row))
            own[source, row] = (0.0, 0.0)
            above: Hashable = source if row == row_of[source] + 1 else (source, row - 1)
            _pull(column, above, (source, row), ENTER_PULL if above == source else LANE_PULL)
    for u, v in inside:
        near = row_of[v] == row_of[u] + 1
        _pull(column, u if near else (u, row_of[v] - 1), v, CHAIN_PULL if near else LEAVE_PULL)
    return column


def _single_file(column: _Column) -> bool:
    return all(sum(isinstance(place, str) for place in row) <= 1 for row in column.rows)


def _pull(column: _Column, a: Hashable, b: Hashable, weight: float) -> None:
    column.pulls.setdefault(a, []).append((b, weight))
    column.pulls.setdefault(b, []).append((a, weight))


def _order(column: _Column) -> None:
    """Order each row by barycentre, sweeping down and up; in single file, lanes stand right of the box by age."""
    if _single_file(column):
        for row in column.rows:
            row.sort(key=lambda place: -column.row_of[place[0]] if isinstance(place, tuple) else -len(column.rows))
        return
    position = {place: float(i) for row in column.rows for i, place in enumerate(row)}
    for sweep in range(8):
        order = range(len(column.rows)) if sweep % 2 == 0 else range(len(column.rows) - 1, -1, -1)
        for r in order:
            neighbours = set(column.rows[r - 1] if sweep % 2 == 0 and r else column.rows[min(r + 1, len(order) - 1)])

            def centre(place: Hashable, near: set[Hashable] = neighbours) -> tuple[float, bool]:
                pulls = [(position[q], w) for q, w in column.pulls.get(place, []) if q in near]
                weight = sum(w for _, w in pulls)
                mean = sum(x * w for x, w in pulls) / weight if weight else position[place]
                return round(mean, 6), isinstance(place, tuple)

            column.rows[r].sort(key=centre)
            middle = (len(column.rows[r]) - 1) / 2
            position.update({place: i - middle for i, place in enumerate(column.rows[r])})


def _place(column: _Column) -> None:
    """Coordinates: each row in turn moves to its neighbours' weighted mean, as far as order and gaps allow."""
    if _single_file(column):
        _nest(column)
        return
    spine = set(_spine(column))
    for row in column.rows:
        offsets = _offsets(column, row)
        middle = next((at for place, at in zip(row, offsets, strict=True) if place in spine), offsets[-1] / 2)
        column.x.update({place: at - middle for place, at in zip(row, offsets, strict=True)})
    for turn in range(ROUNDS):
        for row in column.rows if turn % 2 == 0 else column.rows[::-1]:
            offsets = _offsets(column, row)
            wanted, weights = [], []
            for place, offset in zip(row, offsets, strict=True):
                pulls = column.pulls.get(place, [])
                weight = sum(w for _, w in pulls) or 1e-6
                mean = sum(w * column.x[q] for q, w in pulls) / weight if pulls else column.x[place]
                wanted.append(-offset if place in spine else mean - offset)
                weights.append(SPINE_PULL if place in spine else weight)
            fitted = isotonic(wanted, weights)
            column.x.update({place: x + o for place, x, o in zip(row, fitted, offsets, strict=True)})


def _nest(column: _Column) -> None:
    """Single file: boxes at 0, every lane straight, just outside the lanes of later sources that it passes."""
    edge = max(size[0] for size in column.sizes.values()) / 2 + LANE_GAP * 1.6
    track: dict[str, int] = {}
    extent: dict[str, int] = {}
    for row in column.rows:
        for place in row:
            if isinstance(place, tuple):
                extent[place[0]] = place[1]
    for source in sorted(extent, key=lambda s: -column.row_of[s]):
        inner = [track[s] for s in track if column.row_of[s] < extent[source]]
        track[source] = 1 + max(inner, default=-1)
    for row in column.rows:
        column.x.update({p: edge + LANE_GAP * track[p[0]] if isinstance(p, tuple) else 0.0 for p in row})


def _spine(column: _Column) -> list[str]:
    """A longest chain of boxes, each in the row below the one before."""
    length: dict[str, int] = {}
    after: dict[str, str] = {}
    for u, v in sorted(column.edges, key=lambda edge: -column.row_of[edge[0]]):
        if column.row_of[v] == column.row_of[u] + 1 and length.get(v, 1) + 1 > length.get(u, 1):
            length[u], after[u] = length.get(v, 1) + 1, v
    if not length:
        return []
    chain = [max(length, key=lambda node: length[node])]
    while chain[-1] in after:
        chain.append(after[chain[-1]])
    return chain


def _offsets(column: _Column, row: list[Hashable]) -> list[float]:
    """Smallest possible x of each place in a row whose first place stands at 0."""
    at = [0.0]
    for a, b in pairwise(row):
        boxes = isinstance(a, str) + isinstance(b, str)
        gap = BOX_GAP if boxes == 2 else LANE_GAP * (1 + 0.6 * boxes)
        at.append(at[-1] + (column.sizes[a][0] + column.sizes[b][0]) / 2 + gap)
    return at


def isotonic(wanted: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The non-decreasing sequence nearest to ``wanted`` in weighted least squares (pool adjacent violators)."""
    blocks: list[list[float]] = []  # value, weight, length
    for value, weight in zip(wanted, weights, strict=True):
        blocks.append([value, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            v, w, n = blocks.pop()
            u = blocks[-1]
            blocks[-1] = [(u[0] * u[1] + v * w) / (u[1] + w), u[1] + w, u[2] + n]
    return [value for value, _, length in blocks for _ in range(int(length))]


def _shift(column: _Column, left: float) -> Size:
    """Move the column to ``left`` and give its rows their heights; returns the column's width and bottom."""
    low = min((column.x[p] - column.sizes[p][0] / 2 for p in column.x), default=0.0)
    high = max((column.x[p] + column.sizes[p][0] / 2 for p in column.x), default=0.0)
    column.x = {place: x - low + left for place, x in column.x.items()}
    tapped = {v for u, v in column.edges if column.row_of[v] > column.row_of[u] + 1}
    y = 0.0
    for r, row in enumerate(column.rows):
        tracks = len(tapped.intersection(row))
        y += RANK_GAP + TRACK_GAP * tracks if r else 0.0
        column.top.append(y)
        column.height.append(max((column.sizes[p][1] for p in row), default=0.0))
        y += column.height[-1]
    return high - low, y


def _collect(
    column: _Column, entry: str | None, centres: dict[str, Point], lines: list[Line], dots: list[Point]
) -> None:
    """Turn the placed column into centres, lines and dots."""

    def top(node: str) -> float:
        return column.top[column.row_of[node]] + (column.height[column.row_of[node]] - column.sizes[node][1]) / 2

    def bottom(node: str) -> float:
        return top(node) + column.sizes[node][1]

    for node in column.row_of:
        if node != entry:
            centres[node] = (column.x[node], top(node) + column.sizes[node][1] / 2)
    taps: dict[str, list[str]] = {}
    for u, v in column.edges:
        if column.row_of[v] == column.row_of[u] + 1:
            lines.append(Line(((column.x[u], bottom(u)), (column.x[v], top(v))), True, True, False))
        else:
            taps.setdefault(v, []).append(u)
    ends: dict[str, float] = {}
    used: dict[int, int] = {}
    for v, sources in taps.items():
        row = column.row_of[v]
        used[row] = used.get(row, 0) + 1
        track = column.top[row] - RANK_GAP * 0.55 - TRACK_GAP * (used[row] - 1)
        for side in (-1, 1):
            beside = [u for u in sources if (column.x[u, row - 1] >= column.x[v]) == (side > 0)]
            lines.extend(_tap(column, v, beside, side, track, top(v)))
        for u in sources:
            ends[u] = max(ends.get(u, 0.0), track)
            dots.append((column.x[u, row - 1], track))
    for u, end in ends.items():
        lines.append(_lane(column, u, bottom(u), end))


def _tap(column: _Column, v: str, sources: list[str], side: int, track: float, top: float) -> list[Line]:
    """The horizontal line that joins all lanes on one side of box ``v`` and enters it from above."""
    if not sources:
        return []
    lanes = [column.x[u, column.row_of[v] - 1] for u in sources]
    far = max(lanes) if side > 0 else min(lanes)
    reach = 0.36 * column.sizes[v][0]
    enter = column.x[v] + side * min(reach, abs(min(lanes, key=lambda x: abs(x - column.x[v])) - column.x[v]))
    return [Line(((far, track), (enter, track), (enter, top)), True, False, True)]


def _lane(column: _Column, source: str, bottom: float, end: float) -> Line:
    """The vertical line that carries a source past the ranks it skips, down to ``end``."""
    rows = [r for r in range(column.row_of[source] + 1, len(column.rows)) if (source, r) in column.x]
    first = column.x[source, rows[0]]
    reach = 0.42 * column.sizes[source][0]
    leave = min(max(first, column.x[source] - reach), column.x[source] + reach)
    points = [(leave, bottom), *((column.x[source, r], column.top[r]) for r in rows)]
    points += [(column.x[source, rows[-1]], end)]
    return Line(tuple(points), False, True, True)


def _connector(depth: float, centre: Point, size: Size, x: float, left: float) -> Line:
    """From the last box of a column up to the head of the next one (the entry stands at the top, y = 0)."""
    low = max(depth, centre[1] + size[1] / 2) + 0.2
    between = left - COLUMN_GAP / 2
    points = ((centre[0], centre[1] + size[1] / 2), (centre[0], low), (between, low), (between, 0.0), (x, 0.0))
    return Line(points, False, False, False)
