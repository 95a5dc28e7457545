"""What a network costs, level by level, and the fewest fused levels that a budget allows.

A network whose first ``l`` levels are fused and whose others are the parents' own, side by side, costs

    size(l) = sum_{i < l} c_i  +  sum_p sum_{i >= l} c_p,i

with ``c_i`` a level's cost in the fused network and ``c_p,i`` in parent ``p``. It falls with ``l`` from the
ensemble's cost to the fused network's (parents whose widths differ from the target's may make it rise on the way;
every ``l`` is looked at). Parameters that are tied across the cut are there on both sides, and count there. Cost is
the number of parameters, or of floating-point operations per sample (two per multiplication with addition, as torch
counts them: matrix products and convolutions).
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.utils.flop_counter import FlopCounterMode

from fxfuse.errors import MethodError
from fxfuse.passes.abstract import batch_of, on_meta
from fxfuse.passes.branches import can_branch
from fxfuse.passes.correspond import Correspondence
from fxfuse.passes.subgraph import needed_nodes, parameters_of
from fxfuse.types import Analysis, Level, Program

Unit = Literal["parameters", "flops"]


@dataclass(frozen=True, slots=True)
class Budget:
    """At most so many ``amount`` of ``unit``; where ``relative``, so many times what the target alone costs."""

    amount: float
    unit: Unit = "parameters"
    relative: bool = True


def parse_budget(value: object) -> Budget:
    """A budget as a user writes it: ``1.5`` or ``"1.5x"`` (times one network's parameters), ``"1.5x flops"``,
    ``"200000 parameters"``, ``"3e6 flops"``. Raises :class:`MethodError` for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _positive(Budget(float(value)), value)
    found = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)(x?)\s*(parameters|flops)?", str(value).strip())
    if not isinstance(value, str) or found is None or (not found[2] and found[3] and float(found[1]) < 1):
        raise _unreadable(value)
    relative = bool(found[2]) or found[3] is None
    unit: Unit = "flops" if found[3] == "flops" else "parameters"
    try:
        return _positive(Budget(float(found[1]), unit, relative), value)
    except ValueError:
        raise _unreadable(value) from None


def _positive(budget: Budget, value: object) -> Budget:
    if not 0 < budget.amount < float("inf"):
        raise _unreadable(value)
    return budget


def _unreadable(value: object) -> MethodError:
    return MethodError(
        f"a budget must be a factor on one network's parameters, 1.5, or a text such as '1.5x flops', "
        f"'200000 parameters' or '3e6 flops'. Got {value!r}."
    )


@dataclass(frozen=True, slots=True)
class Cut:
    """So many levels are fused; ``cost`` and ``allowed`` are in the budget's unit, ``fused`` and ``ensemble`` are the
    two ends."""

    levels: int
    cost: int
    allowed: float
    fused: int
    ensemble: int


def choose_cut(pairs: Correspondence, budget: Budget, members: Sequence[int]) -> Cut:
    """The fewest fused levels that fit. Raises :class:`MethodError` for a budget below the fused network's cost."""
    count = len(pairs.reference.partition.levels)
    trunk = _part_costs(pairs.reference, budget.unit)
    branches = [_part_costs(pairs.parents[p], budget.unit) for p in members]
    sizes = [trunk(0, cut) + sum(branch(cut, count) for branch in branches) for cut in range(count + 1)]
    allowed = budget.amount * sizes[count] if budget.relative else budget.amount
    possible = [cut for cut in range(count + 1) if cut == count or can_branch(pairs, cut)]
    fitting = next((cut for cut in possible if sizes[cut] <= allowed * (1 + 1e-9)), None)
    if fitting is None:
        least = min(sizes[cut] for cut in possible)
        ratio = f"{least / sizes[count]:.3g} times" if least != sizes[count] else "as many as"
        raise MethodError(
            f"a budget of {allowed:,.0f} {budget.unit} is below the smallest possible network, which has {least:,} "
            f"({ratio} one network); give that much, or a narrower target."
        )
    return Cut(fitting, sizes[fitting], allowed, sizes[count], sizes[0])


def _part_costs(analysis: Analysis, unit: Unit) -> Callable[[int, int], int]:
    """The cost of a run of levels by itself; parameters that are tied count once in every run that uses them."""
    if unit == "flops":
        costs = level_costs(analysis, unit)
        return lambda first, end: sum(costs[first:end])
    module = analysis.program.module
    named = dict(module.named_parameters(remove_duplicate=False))
    nodes = {node.name: node for node in module.graph.nodes}
    used = [
        {id(named[name]): named[name].numel() for name in _names_in(level, module, nodes)}
        for level in analysis.partition.levels
    ]
    return lambda first, end: sum({key: size for level in used[first:end] for key, size in level.items()}.values())


def _names_in(level: Level, module: fx.GraphModule, nodes: Mapping[str, fx.Node]) -> Iterator[str]:
    """The parameters that a level's value is computed from, given its inputs."""
    for node in needed_nodes([nodes[level.boundary]], {nodes[name] for name in level.inputs}):
        yield from parameters_of(module, node)


def level_costs(analysis: Analysis, unit: Unit) -> list[int]:
    """The cost of every level; a parameter counts in the level that it belongs to."""
    levels = analysis.partition.levels
    if unit == "parameters":
        sizes = {name: p.numel() for name, p in analysis.program.module.named_parameters(remove_duplicate=False)}
        return [sum(sizes[p] for p in level.parameters) for level in levels]
    counted = _operations(analysis.program)
    return [_of_level(level, counted) for level in levels]


def _of_level(level: Level, counted: Mapping[str, int]) -> int:
    return sum(counted.get(name, 0) for name in level.nodes)


class _Counting(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, counter: FlopCounterMode) -> None:
        super().__init__(module)
        self.counter = counter
        self.found: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        before = self.counter.get_total_flops()
        result = super().run_node(n)
        self.found[n.name] = self.counter.get_total_flops() - before
        return result


def _operations(program: Program) -> dict[str, int]:
    """Operations per sample of every node, counted on meta tensors, or on the example where that fails."""
    try:
        counted = _counted(on_meta(program.module), [torch.empty_like(x, device="meta") for x in program.example])
    except Exception:  # an operator without a meta kernel: run it for real, and let that raise
        counted = _counted(program.module, program.example)
    return {name: count // batch_of(program) for name, count in counted.items()}


def _counted(module: fx.GraphModule, inputs: Sequence[Tensor]) -> dict[str, int]:
    counting = _Counting(module, FlopCounterMode(display=False))
    with torch.no_grad(), counting.counter:
        counting.run(*inputs)
    return counting.found
