"""The columns of the matrix: each is a law or a stage that the row's model must pass.

Weights and running statistics are random and all different, so that nothing holds because neurons are alike. A column
either returns what the page shows or raises; its reason is the first line of what it raised. Columns that need what
an earlier one makes are not run after its failure.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxfuse.coverage.entry import Entry
from fxfuse.coverage.large import collect, left_in_file
from fxfuse.export import to_onnx, to_pt2
from fxfuse.export.tools import differences, outputs, quiet
from fxfuse.layouts import spaces_in
from fxfuse.methods import group_parents
from fxfuse.models_zoo.randomise import randomise
from fxfuse.passes.axis_law import permutation_error, permuted
from fxfuse.passes.binding import Bound, bind, capture
from fxfuse.passes.calibrate import calibrate_in_rounds
from fxfuse.passes.checking import check_equal, difference, outputs_at, plain
from fxfuse.passes.correspond import correspond
from fxfuse.passes.precision import doubled, widened
from fxfuse.passes.rewrite import rewrite
from fxfuse.pipeline import analyse, fuse
from fxfuse.presets import METHODS
from fxfuse.recipe import FitSettings
from fxfuse.samples import TensorSamples
from fxfuse.types import Analysis, Axes, FuseResult, Program, parameter_count

LAW = 1e-9
"""Largest change by a permutation, relative to the output, in double precision: rounding is about 1e-15."""
CONTROL = 1e-6
"""Smallest change when only every other tensor is permuted: the law must be able to fail."""
CALMER, CALMEST = 0.8, 0.3
"""Where a network of random weights amplifies rounding until no law can be seen, its matrices are made smaller by this
factor, again and again down to that."""
SAME = 1e-5
"""Largest relative difference in single precision between what must be the same."""
MATCHED = 8
"""Samples by which a network is matched with its permuted copy."""
ROOM = 1 << 30
"""Bytes of statistics at a time."""
SAMPLES = 4
"""Samples of the fusion that is carried through: it is the machinery that is proven."""
FIT = FitSettings(steps=2, joint_steps=2, batch_size=2, augment="none", start="fused")


class CheckError(Exception):
    """A column does not hold; the message says by how much."""


@dataclass(slots=True)
class Subject:
    """A row's model and what the columns have made of it so far. A network is made anew where it is needed: the largest
    ones fit into memory a few times only."""

    entry: Entry
    folder: Path
    analysis: Analysis | None = None
    inputs: tuple[Tensor, ...] = ()
    gain: float = 1.0
    result: FuseResult | None = None
    program: torch.export.ExportedProgram | None = None

    def network(self, seed: int = 0) -> nn.Module:
        """The row's model with random weights; the same for the same seed, also where its constructor draws."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built = self.entry.build()
        network = randomise(built, seed).eval()
        if self.gain < 1:
            with torch.no_grad():
                for p in network.parameters():
                    p.mul_(self.gain if p.dim() > 1 else 1.0)
        return left_in_file(network, self.folder)

    def analyse(self) -> Analysis:
        """The analysis of the model with the weights of now."""
        entry = self.entry
        self.analysis = analyse(self.network(), entry.example(2), name=entry.name, submodule=entry.submodule)
        self.inputs = self.analysis.program.example
        return self.analysis

    def bound(self, batch: int, seed: int) -> tuple[Bound, nn.Module]:
        """Random arguments for the part that is fused, and that part."""
        example, network = self.entry.example(batch, seed), self.network()
        if self.entry.submodule is None:
            return bind(network, example, self.entry.name), network
        return capture(network, example, self.entry.submodule, self.entry.name)

    def analysed(self) -> Analysis:
        """The analysis; a column that needs it is not run without it."""
        assert self.analysis is not None
        return self.analysis

    def fused(self) -> FuseResult:
        """The fused network; likewise."""
        assert self.result is not None
        return self.result


# ------------------------------------------------------------------------------------------------ the columns


def traced(row: Subject) -> str:
    """A front end makes a graph of the model, and no module stays a closed leaf."""
    found = row.analyse()
    kept = [note for note in found.program.notes if "opaque node" in note]
    if kept:
        raise CheckError(kept[0])
    return found.program.front_end


def equal(row: Subject) -> str:
    """The graph computes what the model computes, at another batch size and on other inputs."""
    bound, module = row.bound(4, 7)
    want = outputs_at(module, bound, bound.tensors, row.entry.name)
    graph = row.analysed().program.module
    check_equal(module, graph, bound, [bound.tensors], [want])
    with torch.no_grad():
        return _number(difference(want, plain(graph(*bound.tensors)))[0])


def spaces(row: Subject) -> str:
    """There are neurons to match."""
    found = row.analysed().axes.spaces
    if not found:
        raise CheckError("no neuron space was found")
    return str(len(found))


def opaque(row: Subject) -> str:
    """Every operator has an axis rule."""
    found = row.analysed().axes.opaque
    if found:
        names = ", ".join(sorted({f"{item.operator} ({item.where or item.node})" for item in found}))
        raise CheckError(names)
    return "0"


def levels(row: Subject) -> str:
    """The graph is cut into levels."""
    return str(len(row.analysed().partition.levels))


def permutation(row: Subject) -> str:
    """A random permutation of every space leaves the outputs; permuting every other tensor alone does not."""
    found = row.analysed()
    worst = permutation_error(found.program, found.axes, seed=4)
    collect(parameter_count(found.program.module))
    while not worst <= LAW and row.gain > CALMEST and not _amplified(found.program) <= LAW:
        row.gain *= CALMER
        found = row.analyse()
        worst = permutation_error(found.program, found.axes, seed=4)
    if not worst <= LAW:
        raise CheckError(f"outputs change by {worst:.2g}")
    control = _control(found)
    if not control >= CONTROL:
        raise CheckError(f"the law cannot fail here: half a permutation changes outputs by only {control:.2g}")
    return _number(worst)


def itself(row: Subject) -> str:
    """Matched with a permuted copy of itself and averaged, the network is itself.

    In double precision, and neurons are looked at where they are born too: on few samples some differ by less than the
    rounding of single precision, and some never fire.
    """
    single = row.analysed()
    inputs = tuple(widened(x) for x in row.bound(MATCHED, 5)[0].tensors)
    double = left_in_file(doubled(single.program.module), row.folder)
    seen = replace(single.axes, observed=_at_birth(single.axes))
    first = replace(single, program=replace(single.program, module=double), axes=seen)
    twin = left_in_file(permuted(first.program, first.axes, 1), row.folder)
    pairs = correspond(first, [first, replace(first, program=replace(first.program, module=twin, name="copy"))])
    want, shares = outputs(first.program.module, inputs), (0.5, 0.5)
    rounds = calibrate_in_rounds(
        pairs.parents,
        TensorSamples(inputs),
        weights=shares,
        device=torch.device("cpu"),
        importance="uniform",
        batch_size=2,
        rows_per_sample=None,  # a neuron that fires at one position only has to be seen there
        at_once=ROOM,
    )
    every = pairs.reference.axes.spaces
    found = group_parents(pairs, rounds, METHODS["rebasin"], "uniform", shares, 0)
    have = outputs(rewrite(pairs, found.groupings, shares), inputs)
    try:
        return _number(_apart(want, have))
    except CheckError as error:
        unseen = [space.name for space in every if space.id not in found.statistics and space.outer is None]
        raise CheckError(f"{error}; no value shows {', '.join(unseen)}" if unseen else str(error)) from None


def fused(row: Subject) -> str:
    """Two networks of random weights go through the whole of ``kmeans-gradient``."""
    entry = row.entry
    row.analysis = None  # the largest networks fit into memory a few times only
    row.result = fuse(
        [row.network(0), row.network(1)],
        calibration=_data(entry),
        method="kmeans-gradient",
        fit=FIT,
        compare=False,
        device="cpu",
        submodule=entry.submodule,
        copy=False,
    )
    state = row.result.state_dict()
    broken = [name for name, x in state.items() if x.is_floating_point() and not bool(x.isfinite().all())]
    if broken:
        raise CheckError(f"'{broken[0]}' is not finite after the fit")
    before = row.result.parents[0].program.module.state_dict()
    if all(torch.equal(before[name], value) for name, value in state.items()):
        raise CheckError("the fused network is the first parent")
    return f"{len(row.result.levels)} levels"


def strict(row: Subject) -> str:
    """The model's own class takes the fused weights, and then computes what the fused network computes."""
    bound, module = row.bound(4, 8)
    module.load_state_dict(row.fused().state_dict(), strict=True)
    want = outputs_at(module, bound, bound.tensors, row.entry.name)
    check_equal(module, row.fused().module, bound, [bound.tensors], [want])
    with torch.no_grad():
        return _number(difference(want, plain(row.fused().module(*bound.tensors)))[0])


def exported(row: Subject) -> str:
    """``torch.export`` with a free batch; the file is read back and compares equal."""
    path = to_pt2(row.fused().module, row.inputs, row.folder / "model.pt2")
    with quiet():
        row.program = torch.export.load(path)
        again = row.program.module()
    path.unlink()
    inputs = row.bound(3, 9)[0].tensors
    return _number(_apart(outputs(row.fused().module, inputs), outputs(again, inputs), math.inf))


def onnx(row: Subject) -> str:
    """ONNX with a free batch; onnxruntime gives the same at batch sizes 1, 3 and 17."""
    assert row.program is not None
    report = to_onnx(row.program, row.inputs, row.folder / "model.onnx")
    for file in row.folder.glob("model.onnx*"):
        file.unlink()
    return _number(report.max_rel)


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its heading, its check, and the columns without which it cannot run."""

    title: str
    run: Callable[[Subject], str]
    needs: tuple[str, ...] = ()


COLUMNS: dict[str, Column] = {
    "traced": Column("front end", traced),
    "equal": Column("equal", equal, ("graph",)),
    "spaces": Column("spaces", spaces, ("graph",)),
    "opaque": Column("opaque", opaque, ("graph",)),
    "levels": Column("levels", levels, ("graph",)),
    "permutation": Column("permutation law", permutation, ("graph", "spaces")),
    "self-fusion": Column("self-fusion law", itself, ("graph", "spaces")),
    "fused": Column("fused", fused, ("graph",)),
    "state_dict": Column("strict load", strict, ("fused",)),
    "export": Column("torch.export", exported, ("fused",)),
    "onnx": Column("ONNX", onnx, ("export",)),
}
"""The columns in the order in which they run. ``graph`` is what tracing makes, whether or not a leaf stays closed."""

LAWS = ("traced", "equal", "spaces", "opaque", "levels", "permutation", "self-fusion")
"""The columns about the analysis: quick beside those that fuse and write files."""


def _control(found: Analysis) -> float:
    """The change by permuting a part of the tensors: every other one, or, where the outputs depend on too few for that
    to show, those of one half of the state dict."""
    names = [name for name, axes in found.axes.state.items() if axes.dims]
    half = len(names) // 2
    worst = 0.0
    for kept in (names[::2], names[:half], names[half:], names[:1]):
        worst = max(worst, permutation_error(found.program, found.axes, seed=4, keep=frozenset(kept)))
        collect(parameter_count(found.program.module))
        if worst >= CONTROL:
            break
    return worst


def _amplified(program: Program) -> float:
    """What a change of the inputs by some units in the last place does to the outputs: deep networks and those of
    products amplify rounding, and the law can hold no better than that."""
    module = doubled(program.module)
    inputs = tuple(widened(x) for x in program.example)
    moved = tuple(x * (1 + 1e-14) if x.is_floating_point() else x for x in inputs)
    return differences(outputs(module, inputs), outputs(module, moved))[1]


def _at_birth(axes: Axes) -> dict[int, tuple[str, ...]]:
    """For each space the first value that shows it, before the nodes on which it is observed anyway: those on which it
    is contracted, or the last that shows it."""
    born: dict[int, str] = {}
    last: dict[int, str] = {}
    for name, meaning in axes.values.items():
        for space in (number for layout in meaning.dims for number in spaces_in(layout)):
            born.setdefault(space, name)
            last[space] = name
    return {s: tuple(dict.fromkeys((name, *axes.observed.get(s, (last[s],))))) for s, name in born.items()}


def _data(entry: Entry) -> Any:
    example = entry.example(SAMPLES, 5)
    return TensorSamples(example) if isinstance(example, tuple) else example


def _apart(want: list[Tensor], have: list[Tensor], allowed: float = SAME) -> float:
    worst = differences(want, have)[1]
    if not worst <= allowed:
        raise CheckError(f"outputs change by {worst:.2g}")
    return worst


def _number(error: float) -> str:
    return "0" if error == 0 else f"{error:.0e}"
