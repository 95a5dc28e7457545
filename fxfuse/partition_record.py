"""What is said about a partition: plain records without tensors or graphs, and the words for them.

The JSON file, ``{"format": "fxfuse.partition", "version": 1, ...}``, has these keys:

- ``model``, ``front_end``, ``granularity`` (``"block"``, ``"layer"``, a number or a list of node names), ``notes``
- ``inputs``: ``name``, ``shape`` (``-1`` is the batch), ``dtype`` of each input of the graph
- ``outputs``: the boundaries (or inputs) whose values the graph returns
- ``levels``, in topological order: ``index``, ``name``, ``boundary`` (its output's node), ``nodes``, ``inputs`` (the
  boundaries and graph inputs that it reads), ``operators``, ``parameters`` (state-dict names), ``parameter_count``,
  ``shape``, ``neuron_axis`` (a dimension of ``shape`` or null), ``space`` (an ``id`` of ``spaces`` or null)
- ``spaces``: ``id``, ``name``, ``width``, ``outer`` (an ``id`` or null), ``written`` and ``read`` (the state entries
  whose axes lie in the space, as ``name[dimension]``), ``levels`` (names of those that end in it), ``note``
- ``opaque``: ``operator``, ``node``, ``where``, ``reason``

A later version may add keys; readers ignore those that they do not know.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
from torch import Tensor

from fxfuse.types import Analysis, Axes, Granularity, Layout, Leaf, Level, Opaque, Program

TIMES = "\N{MULTIPLICATION SIGN}"
FORMAT, VERSION = "fxfuse.partition", 1


@dataclass(frozen=True, slots=True)
class InputRow:
    """One input of the graph; ``shape`` has ``-1`` for the batch."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class LevelRow:
    """One level as ``fxfuse.types.Level`` has it, with its number of scalar parameters."""

    index: int
    name: str
    boundary: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    operators: tuple[str, ...]
    parameters: tuple[str, ...]
    parameter_count: int
    shape: tuple[int, ...]
    neuron_axis: int | None
    space: int | None


@dataclass(frozen=True, slots=True)
class SpaceRow:
    """One neuron space and what lies in it; ``written`` and ``read`` name state entries as ``name[dimension]``."""

    id: int
    name: str
    width: int
    outer: int | None
    written: tuple[str, ...]
    read: tuple[str, ...]
    levels: tuple[str, ...]
    note: str


@dataclass(frozen=True, slots=True)
class PartitionRecord:
    """All that is said about a partition, free of tensors and graphs."""

    model: str
    front_end: str
    granularity: Granularity
    notes: tuple[str, ...]
    inputs: tuple[InputRow, ...]
    outputs: tuple[str, ...]
    levels: tuple[LevelRow, ...]
    spaces: tuple[SpaceRow, ...]
    opaque: tuple[Opaque, ...]

    def label(self, node: str) -> str:
        """The name of the level that ends at ``node``; ``node`` itself for an input of the graph."""
        return next((level.name for level in self.levels if level.boundary == node), node)

    def space(self, level: LevelRow) -> SpaceRow | None:
        """The space in which a level ends."""
        return next((space for space in self.spaces if space.id == level.space), None)


# ------------------------------------------------------------------------------------------- the record


def summarise(analysis: Analysis) -> PartitionRecord:
    """The record of an analysed parent."""
    program, axes, partition = analysis.program, analysis.axes, analysis.partition
    state = {**dict(program.module.named_buffers()), **dict(program.module.named_parameters(remove_duplicate=False))}
    return PartitionRecord(
        model=program.name,
        front_end=program.front_end,
        granularity=partition.granularity,
        notes=(*program.notes, *partition.notes),
        inputs=_inputs(program),
        outputs=_outputs(program, partition.levels),
        levels=tuple(_level(level, state) for level in partition.levels),
        spaces=tuple(_spaces(axes, partition.levels)),
        opaque=axes.opaque,
    )


def _inputs(program: Program) -> tuple[InputRow, ...]:
    names = [node.name for node in program.module.graph.nodes if node.op == "placeholder"]
    batch = next((x.shape[0] for x in program.example if x.dim()), None)
    return tuple(
        InputRow(name, tuple(-1 if i == 0 and n == batch else n for i, n in enumerate(x.shape)), _dtype(x))
        for name, x in zip(names, program.example, strict=False)
    )


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _outputs(program: Program, levels: Sequence[Level]) -> tuple[str, ...]:
    """The nearest boundaries and inputs above the graph's output, in the order in which the output names them."""
    stops = {level.boundary for level in levels}
    found: dict[str, None] = {}
    seen = set()
    waiting = [node for node in program.module.graph.nodes if node.op == "output"]
    while waiting:
        node = waiting.pop()
        if node.name in stops or node.op == "placeholder":
            found[node.name] = None
        elif node not in seen:
            seen.add(node)
            waiting.extend(reversed(node.all_input_nodes))
    return tuple(found)


def _level(level: Level, state: dict[str, Tensor]) -> LevelRow:
    count = sum(state[name].numel() for name in level.parameters if name in state)
    return LevelRow(
        index=level.index,
        name=level.name,
        boundary=level.boundary,
        nodes=level.nodes,
        inputs=level.inputs,
        operators=level.operators,
        parameters=level.parameters,
        parameter_count=count,
        shape=level.shape,
        neuron_axis=level.neuron_axis,
        space=level.space,
    )


def _spaces(axes: Axes, levels: Sequence[Level]) -> Iterator[SpaceRow]:
    written: dict[int, list[str]] = {}
    read: dict[int, list[str]] = {}
    for name, tensor in axes.state.items():
        for dim, layout in enumerate(tensor.dims):
            for member in dict.fromkeys(_within(layout)):
                into = read if (dim, member) in tensor.reads else written
                into.setdefault(member, []).append(f"{name}[{dim}]")
    for space in axes.spaces:
        notes = []
        if not read.get(space.id):
            notes.append("no weight reads it")
        if not axes.observed.get(space.id):
            notes.append("never observed: its neurons cannot be compared by activations")
        ends = tuple(level.name for level in levels if level.space == space.id)
        yield SpaceRow(
            id=space.id,
            name=space.name,
            width=space.size,
            outer=space.outer,
            written=tuple(written.get(space.id, ())),
            read=tuple(read.get(space.id, ())),
            levels=ends,
            note="; ".join(notes),
        )


def _within(layout: Layout) -> Iterator[int]:
    """The spaces that occur in a layout, from the left."""
    if isinstance(layout, Leaf):
        if layout.space is not None:
            yield layout.space
    else:
        for part in layout.parts:
            yield from _within(part)


# ------------------------------------------------------------------------------------------- words


def count_operators(operators: Sequence[str], limit: int | None = None) -> str:
    """``2× Conv2d 3x3, ReLU``: each operator once, in order of appearance; at most ``limit`` kinds, then how many more.

    >>> count_operators(["Conv2d 3x3", "ReLU", "Conv2d 3x3"])
    '2× Conv2d 3x3, ReLU'
    """
    counts = Counter(operators)
    words = [name if n == 1 else f"{n}{TIMES} {name}" for name, n in counts.items()]
    if limit is not None and len(words) > limit:
        words = [*words[:limit], f"+{len(words) - limit} more"]
    return ", ".join(words)


def count_words(count: int) -> str:
    """A number of parameters for a reader.

    >>> count_words(640), count_words(11_689_512)
    ('640', '11.69 M')
    """
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.4g} {letter}"
    return str(count)


def shape_words(shape: Sequence[int]) -> str:
    """A shape for a reader, ``N`` for the batch.

    >>> shape_words((-1, 64, 8, 8))
    'N×64×8×8'
    """
    return TIMES.join("N" if n == -1 else str(n) for n in shape)


def caption(record: PartitionRecord) -> str:
    """One line on the whole: model, levels, parameters."""
    total = sum(level.parameter_count for level in record.levels)
    return f"{record.model}: {len(record.levels)} levels, {count_words(total)} parameters"


LEVEL_COLUMNS = ("name", "operators", "parameters", "output shape", "neuron axis", "neuron space", "inputs")


def level_rows(record: PartitionRecord) -> list[tuple[str, ...]]:
    """The levels as rows of text under ``LEVEL_COLUMNS``."""
    return [
        (
            level.name,
            count_operators(level.operators, limit=6),
            f"{level.parameter_count:,}",
            shape_words(level.shape),
            "-" if level.neuron_axis is None else str(level.neuron_axis),
            space_words(record, level),
            ", ".join(record.label(node) for node in level.inputs),
        )
        for level in record.levels
    ]


def space_words(record: PartitionRecord, level: LevelRow) -> str:
    """``name (width)`` of the space in which a level ends, or ``-``."""
    space = record.space(level)
    return "-" if space is None else f"{space.name} ({space.width})"


SPACE_COLUMNS = ("space", "width", "inside", "written by", "read by", "note")


def space_rows(record: PartitionRecord) -> list[tuple[str, ...]]:
    """The neuron spaces as rows of text under ``SPACE_COLUMNS``."""
    names = {space.id: space.name for space in record.spaces}
    return [
        (
            space.name,
            str(space.width),
            "-" if space.outer is None else f"each of {names.get(space.outer, space.outer)}",
            _members(space.written),
            _members(space.read),
            space.note,
        )
        for space in record.spaces
    ]


def _members(entries: Sequence[str], limit: int = 4) -> str:
    """The modules that own state entries, each once, at most ``limit`` of them."""
    owners = list(dict.fromkeys(_owner(entry) for entry in entries))
    more = f", +{len(owners) - limit} more" if len(owners) > limit else ""
    return ", ".join(owners[:limit]) + more or "-"


def _owner(entry: str) -> str:
    name = entry.partition("[")[0]
    return name.rpartition(".")[0] or name


# ------------------------------------------------------------------------------------------- plain values


def edges(record: PartitionRecord) -> list[tuple[str, str]]:
    """Edges between graph inputs and boundaries, in the order of the levels that read them."""
    return [(node, level.boundary) for level in record.levels for node in dict.fromkeys(level.inputs)]


def to_json(record: PartitionRecord) -> dict[str, Any]:
    """The record as plain values; see the module's docstring for the keys."""
    return {"format": FORMAT, "version": VERSION, **dataclasses.asdict(record)}


def to_networkx(record: PartitionRecord) -> "nx.DiGraph[str]":
    """The levels as a graph with plain attributes; nodes are graph inputs (``kind="input"``) and boundaries."""
    graph: nx.DiGraph[str] = nx.DiGraph(model=record.model, granularity=str(record.granularity))
    for item in record.inputs:
        graph.add_node(item.name, kind="input", label=item.name, shape=shape_words(item.shape), dtype=item.dtype)
    for level in record.levels:
        graph.add_node(
            level.boundary,
            kind="level",
            label=level.name,
            index=level.index,
            operators=count_operators(level.operators),
            parameters=level.parameter_count,
            shape=shape_words(level.shape),
            neuron_axis=-1 if level.neuron_axis is None else level.neuron_axis,
            space=space_words(record, level),
            output=level.boundary in record.outputs,
        )
    graph.add_edges_from(edges(record))
    return graph
