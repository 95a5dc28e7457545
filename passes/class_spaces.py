"""The neuron spaces that are classes: where a program's outputs have their class axis.

With a label map, the class axis of an output is an axis like any other (:func:`fxfuse.passes.axes.axes` with
``classes``), except that nobody has to find out which of its neurons correspond: the label map says so.
"""

from collections.abc import Sequence
from dataclasses import replace

from fxfuse.errors import MethodError
from fxfuse.label_space import LabelSpace, class_axis
from fxfuse.passes.resize import resize
from fxfuse.passes.shapes import value_shapes
from fxfuse.passes.subgraph import output_nodes
from fxfuse.types import Analysis, Leaf, Program


def class_counts(program: Program) -> tuple[int, ...]:
    """The number of entries along the class axis of every output that has one, in the order of the outputs."""
    shapes = value_shapes(program)
    found = []
    for node in output_nodes(program.module.graph):
        shape = shapes.get(node.name)
        axis = None if shape is None else class_axis(shape)
        if shape is not None and axis is not None:
            found.append(shape[axis])
    return tuple(found)


def check_classes(program: Program, classes: int) -> None:
    """Raise :class:`MethodError` unless some output of ``program`` decides between that many classes."""
    counts = class_counts(program)
    if classes not in counts:
        has = " and ".join(map(str, counts)) if counts else "no output with classes"
        raise MethodError(
            f"the label map of {program.name} has {classes} entries, but the network has {has}; name its outputs' "
            "classes in their order, each once."
        )


def check_same_classes(programs: Sequence[Program]) -> None:
    """Raise :class:`MethodError` where programs without label maps decide between different numbers of classes."""
    counts = [class_counts(program) for program in programs]
    for program, own in zip(programs, counts, strict=True):
        if len(own) == len(counts[0]) and own != counts[0]:
            first, other = (" and ".join(map(str, count)) for count in (counts[0], own))
            raise MethodError(
                f"{programs[0].name} has {first} outputs and {program.name} has {other}: if they know different "
                "classes, give label maps that say which are the same (labels=[[...], [...]], `labels` of each parent "
                "in a recipe, or --labels); otherwise give parents with equal heads."
            )


def class_spaces(analysis: Analysis, classes: int) -> tuple[int, ...]:
    """The spaces along the class axis of the outputs with that many classes.

    Raises :class:`MethodError` where an operator behind the head fixes their order or number.
    """
    found: dict[int, None] = {}
    for node in output_nodes(analysis.program.module.graph):
        meaning = analysis.axes.values.get(node.name)
        sizes = () if meaning is None else tuple(layout.size for layout in meaning.dims)
        axis = class_axis(sizes)
        if meaning is None or axis is None or sizes[axis] != classes:
            continue
        layout = meaning.dims[axis]
        if not isinstance(layout, Leaf) or layout.space is None:
            raise MethodError(
                f"the classes of {analysis.program.name} cannot be put into another order at its output {node.name}: "
                f"their places are fixed{_culprit(analysis)}. Fuse the network without what stands behind its head."
            )
        found[layout.space] = None
    return tuple(found)


def _culprit(analysis: Analysis) -> str:
    names = ", ".join(f"{opaque.operator} at {opaque.node}" for opaque in analysis.axes.opaque)
    return f" (operators without an axis rule: {names})" if names else " by what the network computes from them"


def with_classes(target: Analysis, labels: LabelSpace, classes: int) -> Analysis:
    """``target``, which has ``classes`` classes, with as many as the union has."""
    if classes == labels.size:
        return target
    sizes = {space.id: space.size for space in target.axes.spaces}
    for space in class_spaces(target, classes):
        sizes[space] = labels.size
    made = resize(target, sizes)
    shapes = value_shapes(made.program)
    levels = tuple(
        replace(level, shape=(-1, *shape[1:]) if (shape := shapes.get(level.boundary)) else level.shape)
        for level in made.partition.levels
    )
    return replace(made, partition=replace(made.partition, levels=levels))
