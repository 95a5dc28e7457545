"""The records that cross file borders, and nothing else.

All are frozen. Shapes in docstrings use these letters: ``P`` parents, ``n_p`` neurons of parent ``p`` in a space,
``N = sum_p n_p``, ``m`` neurons of the fused network in that space.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, fx

from fxfuse.products import Products

FrontEnd = Literal["fx", "export"]


# --------------------------------------------------------------------------------------------- analysis


@dataclass(frozen=True, slots=True)
class Program:
    """A parent as a canonical graph, the output of ``trace`` and ``normalize``.

    ``module`` computes what the parent computes, in evaluation mode, for any batch size; its parameters and buffers
    carry the parent's own names and are copies, never aliases. ``example`` holds one small batch per graph input, in
    the order of the placeholders. ``notes`` says in words what normalisation changed and what it had to leave.
    ``keywords`` names the inputs that the example gave by name, the last ones.
    """

    name: str
    module: fx.GraphModule
    example: tuple[Tensor, ...]
    front_end: FrontEnd
    notes: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the inputs are called: the names of ``forward``'s arguments, the parent's and the graph's."""
        return tuple(str(node.target) for node in self.module.graph.nodes if node.op == "placeholder")


@dataclass(frozen=True, slots=True)
class Space:
    """A neuron space: axes that must be permuted together for the function to stay the same.

    ``outer`` is the space whose every neuron owns an ordering of this one (the width inside each attention head, the
    channels inside each group of a grouped convolution); ``None`` for an ordinary space.
    """

    id: int
    size: int
    name: str
    outer: int | None = None


@dataclass(frozen=True, slots=True)
class Leaf:
    """A run of indices that is one factor: neurons of a space, or pinned positions (``space is None``)."""

    size: int
    space: int | None = None


@dataclass(frozen=True, slots=True)
class Product:
    """Factors in row-major order, outermost first: a flatten of channels and positions, heads times head width."""

    parts: tuple["Layout", ...]

    @property
    def size(self) -> int:
        """Number of indices: the factors' product."""
        size = 1
        for part in self.parts:
            size *= part.size
        return size


@dataclass(frozen=True, slots=True)
class Concat:
    """Segments one after the other: a concatenation, or a packed query-key-value projection."""

    parts: tuple["Layout", ...]

    @property
    def size(self) -> int:
        """Number of indices: the segments' sum."""
        return sum(part.size for part in self.parts)


Layout = Leaf | Product | Concat
"""What the indices of one tensor dimension mean."""


@dataclass(frozen=True, slots=True)
class TensorAxes:
    """What every dimension of a tensor means. ``reads`` holds, for a parameter, the pairs (dimension, space) that the
    graph contracts with an activation (a weight's input side); all others are written (merged) when parents are
    fused."""

    dims: tuple[Layout, ...]
    reads: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True, slots=True)
class Opaque:
    """An operator without an axis rule: its spaces are pinned. ``where`` is the user's own source line, if known."""

    operator: str
    node: str
    where: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Axes:
    """The result of the ``axes`` pass.

    ``state`` maps parameter and buffer names to their axes, ``values`` graph nodes that yield one tensor to theirs.
    The batch dimension of a value is a pinned leaf of the example's batch size. ``observed`` maps a space to the
    nodes on whose values its neurons are best compared (those that are contracted over the space).
    """

    spaces: tuple[Space, ...]
    state: Mapping[str, TensorAxes]
    values: Mapping[str, TensorAxes]
    observed: Mapping[int, tuple[str, ...]]
    opaque: tuple[Opaque, ...] = ()


@dataclass(frozen=True, slots=True)
class Level:
    """The single-output sub-graph that ends at ``boundary``.

    ``nodes`` are graph node names in topological order, ending with the boundary; ``inputs`` are the boundaries and
    placeholders that it reads; ``parameters`` are state-dict names of parameters, ``operators`` short names for a
    reader (``Conv2d 3x3``). ``shape`` is the boundary value's shape with ``-1`` for the batch. ``neuron_axis`` is the
    dimension that indexes neurons and ``space`` the space it lies in (the first one, if it is composite), both
    ``None`` where the value has none (a pinned output, say).
    """

    index: int
    name: str
    boundary: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    parameters: tuple[str, ...]
    operators: tuple[str, ...]
    shape: tuple[int, ...]
    neuron_axis: int | None
    space: int | None


Granularity = Literal["block", "layer"] | int | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Partition:
    """Levels in topological order; together they hold every parameter exactly once and form a DAG."""

    levels: tuple[Level, ...]
    granularity: Granularity
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Analysis:
    """All that the compiler knows about one parent before it sees data."""

    program: Program
    axes: Axes
    partition: Partition


# --------------------------------------------------------------------------------------------- statistics


@dataclass(frozen=True, slots=True)
class SpaceStatistics:
    """Calibration statistics of one space, streamed: all that a grouping solver may know about the activations.

    Parents' neurons are stacked, parent after parent: ``widths[p] = n_p``, ``N = sum(widths)``. With ``a_i`` the
    vector of all observed activations of neuron ``i`` over ``rows`` rows (samples x positions x observed nodes):
    ``gram[i, j] = <a_i, a_j> / rows`` (not centred, ``N x N``, float64; in ``products``, which may save making it),
    ``mean[i]`` the mean of ``a_i``.
    ``importance`` (``N``) is non-negative and sums to 1 within each parent, times the parent's weight.

    For a space with ``outer``, parent ``p`` has ``outer_widths[p]`` blocks of ``n_p`` neurons, stacked block after
    block: ``N = sum_p outer_widths[p] * widths[p]``. Otherwise ``outer_widths`` is all ones.

    From weights (:mod:`fxfuse.passes.weight_statistics`) the rows are features of parameters, and ``divergence``
    (``N x N``) may hold how far the neurons' posteriors are apart.
    """

    space: int
    widths: tuple[int, ...]
    outer_widths: tuple[int, ...]
    rows: int
    mean: Tensor
    products: Products
    importance: Tensor
    divergence: Tensor | None = None

    @property
    def gram(self) -> Tensor:
        """All inner products, ``N x N``."""
        return self.products.matrix

    def light(self) -> "SpaceStatistics":
        """The statistics without what grows with the square of the width."""
        return replace(self, products=Products(self.mean.new_empty(0, 0)), divergence=None)


@dataclass(frozen=True, slots=True)
class Grouping:
    """Merge and unmerge matrices of one space: ``fused = sum_p merge[p] @ parent_p`` and ``unmerge`` back.

    Ordinary space: ``merge[p]`` is ``m x n_p`` (the rows of ``cat(merge, 1)`` sum to 1 for averaging methods) and
    ``unmerge[p]`` is ``n_p x m``.

    Space inside an outer space, whose fused network has ``M`` blocks and parent ``p`` has ``B_p``: ``merge[p]`` is
    ``M x B_p x m x n_p`` and ``unmerge[p]`` is ``B_p x M x n_p x m``. The matrix that acts on the flattened
    (block, neuron) axis is the outer matrix times the inner one, entry by entry:
    ``outer.merge[p][a, b] * merge[p][a, b, i, j]``.

    The matrices of a :class:`FuseResult` are sparse tensors where they are large and nearly empty
    (:func:`fxfuse.matrices.compact`).

    ``error`` is the grouping error relative to the neurons' energy:
    ``sum_i s_i ||a_i - t_g(i)||^2 / sum_i s_i ||a_i||^2`` where a solver computes it, else ``None``.
    """

    space: int
    merge: tuple[Tensor, ...]
    unmerge: tuple[Tensor, ...]
    error: float | None = None


# --------------------------------------------------------------------------------------------- results


@dataclass(frozen=True, slots=True)
class LevelReport:
    """What happened to one level: ``grouping_error`` is the part of the parents' neurons' energy that the groups
    cannot express, ``before`` and ``after`` are the errors of the fused level's output to its target on held-out
    samples (relative ones; at an output with classes the divergence from the wanted answer), before and after fitting
    (``None`` where nothing was fitted or measured)."""

    level: str
    space: str | None
    width: int | None
    parent_widths: tuple[int, ...]
    grouping_error: float | None = None
    before: float | None = None
    after: float | None = None
    fit: str = "none"
    seconds: float = 0.0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Score:
    """One row of a comparison table; accuracies lie in 0..1, ``None`` without labels.

    ``agreement`` is the part of the predictions that are those of the parents' ensemble of probabilities. ``error`` is
    the squared distance of the outputs to the parents' mean output, relative to that one's energy; given where there
    is no accuracy.
    """

    name: str
    accuracy: float | None
    loss: float | None = None
    agreement: float | None = None
    parameters: int | None = None
    error: float | None = None


@dataclass(frozen=True, slots=True)
class FuseResult:
    """The fused network and the account of how it came about. ``classes`` names the rows of its head, where the parents
    had label maps."""

    module: fx.GraphModule
    analysis: Analysis
    parents: tuple[Analysis, ...]
    groupings: Mapping[int, Grouping]
    levels: tuple[LevelReport, ...]
    scores: tuple[Score, ...] = ()
    notes: tuple[str, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()

    def state_dict(self) -> dict[str, Tensor]:
        """The fused weights under the target model's own names."""
        return self.module.state_dict()


Batch = tuple[tuple[Tensor, ...], Tensor | None]
"""One batch of calibration or evaluation data: the model's inputs, and labels where there are any."""


def parameter_count(module: torch.nn.Module) -> int:
    """Number of scalar parameters, shared ones once."""
    return sum(p.numel() for p in module.parameters())
