"""The parents as the compiler sees them before it sees data: graphs, neuron spaces, levels, and what matches what.

The target, in whose names everything is then said, is the first parent, the first parent with other widths, or another
module of the same graph.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fxfuse.data import few_inputs, input_names
from fxfuse.data_checks import check_labels
from fxfuse.errors import DataError, MethodError, MismatchError
from fxfuse.label_space import LabelSpace, class_count
from fxfuse.naming import in_order
from fxfuse.passes.axes import axes
from fxfuse.passes.class_spaces import check_classes, check_same_classes, class_spaces, with_classes
from fxfuse.passes.correspond import Correspondence, correspond
from fxfuse.passes.importance import answers
from fxfuse.passes.merges import State, reference_states
from fxfuse.passes.partition import partition
from fxfuse.passes.resize import scale
from fxfuse.passes.solvers import check_space
from fxfuse.passes.trace import trace
from fxfuse.passes.verify import score
from fxfuse.recipe import FrontEndChoice
from fxfuse.samples import Samples, Subset
from fxfuse.stages.arguments import Choice, Data, Job, Tracing
from fxfuse.types import Analysis, Granularity, Program
from fxfuse.weights import check_finite

Example = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]


def analyse(
    module: nn.Module,
    example: Example,
    *,
    name: str = "parent",
    granularity: Granularity = "block",
    leaves: Sequence[str] = (),
    submodule: str | None = None,
    front_end: FrontEndChoice = "auto",
    classes: int | None = None,
    copy: bool = True,
) -> Analysis:
    """All that the compiler finds out about a model before it sees data: its graph, its neuron spaces, its levels.

    ``example`` is a batch of two or more inputs: a tensor, a tuple of them, or a mapping by forward argument. The
    model is left as it is; without ``copy`` the analysis has its parameters, not copies of them. With ``classes`` the
    outputs of that many classes may get others (:mod:`fxfuse.label_space`). Raises ``TraceError`` if no graph can be
    made of it, and for a leaf that it does not have.
    """
    program = trace(module, example, name=name, leaves=leaves, submodule=submodule, front_end=front_end, copy=copy)
    if classes is not None:
        check_classes(program, classes)
    meaning = axes(program, classes=classes)
    return Analysis(program, meaning, partition(program, meaning, granularity))


@dataclass(frozen=True, slots=True)
class Matched:
    """The parents and the target, part by part, and the base model's tensors under the target's names, if it has one.
    ``example`` is the batch that they were traced with; ``data`` have their inputs in the order of the target's."""

    pairs: Correspondence
    base: State | None
    example: Example
    data: Data
    notes: tuple[str, ...]


def match_parents(
    job: Job,
    modules: Sequence[nn.Module],
    target: nn.Module | float | None,
    base: nn.Module | None,
    example: Example | None,
    data: Data,
) -> Matched:
    """Analyse the parents, the target and the base model, and pair their parts.

    Raises subclasses of ``FuseError``: for weights that are not finite, a model that no graph can be made of, inputs
    that it does not take, graphs that differ, labels of other classes, and a budget below what the smallest network
    costs.
    """
    shown = _shown(example, data)
    union = job.parents.union
    analyses = []
    with job.host.progress.start(len(modules), "trace and analyse") as bar:
        for p, (module, name) in enumerate(zip(modules, job.parents.names, strict=True)):
            analyses.append(_analyse(module, name, shown, job.tracing, job.parents.classes(p)))
            bar.advance()
    if union is None:
        check_same_classes([analysis.program for analysis in analyses])
    aimed = _target(target, analyses[0], shown, job.tracing, union)
    if isinstance(shown, Mapping):
        _check_order([aimed.program, *(analysis.program for analysis in analyses)])
    shown, data = _in_order(shown, data, aimed.program, job.tracing)
    pairs = correspond(aimed, analyses)
    if union is None:
        _check_spaces(job.method, pairs, job.parents.shares)
    job.method.form.check(pairs, job.parents.shares)
    _check_labels(data, pairs.reference.program, union is not None)
    state = None
    if base is not None:
        found = _analyse(base, "base", shown, job.tracing, job.parents.classes(0))
        state = reference_states(correspond(pairs.reference, [found]))[0]
    notes = (*_straight(job.tracing, shown, analyses[0]), *_notes(pairs.reference))
    return Matched(pairs, state, shown, data, notes)


def _analyse(module: nn.Module, name: str, example: Example, tracing: Tracing, classes: int | None) -> Analysis:
    check_finite(module, name)
    return _traced(module, name, example, tracing, classes)


def _traced(module: nn.Module, name: str, example: Example, tracing: Tracing, classes: int | None) -> Analysis:
    return analyse(
        module,
        example,
        name=name,
        granularity=tracing.granularity,
        leaves=tracing.leaves,
        submodule=tracing.submodule,
        front_end=tracing.front_end,
        classes=classes,
        copy=tracing.copy,
    )


def _check_spaces(method: Choice, pairs: Correspondence, shares: tuple[float, ...]) -> None:
    """What the solver would refuse after the work of calibration. Blocks inside a space are paired later, and a form
    that widens has other targets."""
    preset = method.preset
    if method.form.form != "fused" or method.form.widens:
        return
    for space in (space for space in pairs.reference.axes.spaces if space.outer is None):
        try:
            check_space(preset.solver, tuple(pairs.widths(space.id)), space.size, shares, preset.options)
        except MethodError as error:
            raise MethodError(f"method {method.name!r}, space {space.name!r}: {error}") from None


def _shown(example: Example | None, data: Data) -> Example:
    if example is not None:
        return example
    samples = data.evaluation if data.calibration is None else data.calibration
    if samples is None:
        raise DataError("there is nothing to trace the parents with: give calibration data, or example=")
    return few_inputs(samples)


def _check_order(programs: Sequence[Program]) -> None:
    """Samples are put into one order of inputs, which has to be every network's."""
    first = programs[0]
    for other in programs[1:]:
        if other.inputs != first.inputs:
            raise MismatchError(
                f"{other.name} takes its inputs in the order {', '.join(other.inputs)}, {first.name} in the order "
                f"{', '.join(first.inputs)}: give the forward methods one order, or a wrapper that has it"
            )


def _in_order(shown: Example, data: Data, target: Program, tracing: Tracing) -> tuple[Example, Data]:
    """The example and the data as the target takes its inputs, by their names if they have any. Names of a whole
    network's inputs say nothing about those of a part; a part takes what has other names by position."""
    wanted, part = target.inputs, tracing.submodule is not None
    if isinstance(shown, Mapping) and (not part or shown.keys() == set(wanted)):
        shown = {name: shown[name] for name in wanted}

    def ordered(samples: Samples | None, what: str) -> Samples | None:
        if samples is None or (part and set(input_names(samples) or ()) != set(wanted)):
            return samples
        return in_order(samples, wanted, what)

    made = replace(
        data,
        calibration=ordered(data.calibration, "calibration data"),
        evaluation=ordered(data.evaluation, "evaluation data"),
    )
    return shown, made


def _check_labels(data: Data, reference: Program, maps: bool) -> None:
    """What is found here would otherwise be found when everything is done."""
    with torch.no_grad():
        outputs = answers(reference.module(*reference.example))
    shape = next((y.shape for y in outputs if y.ndim <= 2), None)  # what one label per sample can be compared with
    count = None if shape is None else 2 if len(shape) == 1 else class_count(shape)
    if data.calibration is not None:
        check_labels(data.calibration, count, "calibration data")
    if data.evaluation is None:
        return
    check_labels(data.evaluation, count, "evaluation data", judged=not maps)
    if data.calibration is not None:
        _check_taken(data.evaluation, reference)
    if data.evaluation.labelled and not maps:
        few = Subset(data.evaluation, torch.arange(min(2, len(data.evaluation))))
        score("the network", reference.module, few, device=torch.device("cpu"))


def _check_taken(evaluation: Samples, reference: Program) -> None:
    inputs, _ = evaluation.take(torch.arange(min(2, len(evaluation))))
    try:
        with torch.no_grad():
            reference.module(*inputs)
    except Exception as error:  # the user's network, and torch, may raise anything
        shapes, traced = (
            ", ".join(str(tuple(x.shape[1:])) for x in tensors) for tensors in (inputs, reference.example)
        )
        raise DataError(
            f"the networks do not take the evaluation data ({evaluation.description}), samples of shape {shapes}; "
            f"those of the calibration data have {traced}"
        ) from error


def _target(
    target: nn.Module | float | None, first: Analysis, example: Example, tracing: Tracing, union: LabelSpace | None
) -> Analysis:
    if isinstance(target, nn.Module):
        return _traced(target, "target", example, tracing, None if union is None else union.size)
    fixed = () if union is None else class_spaces(first, len(union.maps[0]))
    made = first if target is None or target == 1.0 else scale(first, float(target), fixed)
    return made if union is None else with_classes(made, union, len(union.maps[0]))


def _straight(tracing: Tracing, shown: Example, first: Analysis) -> Iterator[str]:
    """A word where a part of the parents is fused that receives something else than the samples, which it is given."""
    if tracing.submodule is None:
        return
    given = (shown,) if isinstance(shown, Tensor) else tuple(shown.values() if isinstance(shown, Mapping) else shown)
    taken = first.program.example
    if len(given) != len(taken) or not all(map(_same, given, taken)):
        yield (
            f"the samples go straight into {tracing.submodule}, which receives something else when the whole of "
            f"{first.program.name} runs on them: give samples of what that part receives"
        )


def _same(given: Tensor, taken: Tensor) -> bool:
    """Whether the tensors are equal; a single sample may have been repeated."""
    alike = given.dtype == taken.dtype and given.shape[1:] == taken.shape[1:]
    return alike and given.shape[:1] in ((1,), taken.shape[:1]) and bool((given == taken).all())


def _notes(analysis: Analysis) -> Iterator[str]:
    yield from analysis.program.notes
    yield from analysis.partition.notes
    for opaque in analysis.axes.opaque:
        place = f" ({opaque.where})" if opaque.where else ""
        yield f"no axis rule for {opaque.operator} at {opaque.node}{place}: its neurons stay unmatched"
