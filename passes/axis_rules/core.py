"""What a rule sees of one operator call, and the table in which rules stand.

A rule is a function ``rule(call) -> dims`` (one list of dimensions, or a list of them for several outputs). It reads
the dimensions of the operands with ``call.dims(i)``, states what the operator does to them with ``unify``, ``pin``,
``call.contract`` and the shape helpers, and returns the dimensions of what comes out. To teach fxfuse an operator:

    from fxfuse.passes.axis_rules import axis_rule, pin

    @axis_rule("mylib::roll_channels")
    def roll_channels(call):
        x = call.dims(0)
        pin(x[1])            # a shift does not commute with permutations
        return x

A rule must be true by the operator's definition: a permutation that it allows must leave the function unchanged.
"""

import difflib
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from fxfuse.passes.algebra import disown, unify, unify_all
from fxfuse.passes.variables import (
    Dim,
    Dims,
    Factor,
    Unset,
    Var,
    alike,
    expand,
    inside,
    owners_of,
    pin,
    settle,
    size_of,
)

Outputs = Dims | list[Dims]


@dataclass(slots=True)
class Meaning:
    """What is known of one tensor: its dimensions, whether it is computed from parameters alone, whose value it is,
    whether any operator has taken it, and the dimensions into which its values point: they must keep their order as
    soon as somebody reads the values; which of its values may be equal (:mod:`fxfuse.passes.axis_rules.ties`)."""

    dims: Dims
    stored: bool = False
    node: str | None = None
    used: bool = False
    points: Dims = field(default_factory=list)
    ties: int = 0

    def read(self) -> None:
        """Somebody takes the tensor."""
        self.used = True
        for dim in self.points:
            pin(dim)


@dataclass(slots=True)
class Trace:
    """What an interpretation gathers: parameter dimensions that are read, values that are contracted, derived
    parameters (whose ownership is checked at the end), operators without a rule."""

    reads: list[tuple[tuple[str, int], Factor]] = field(default_factory=list)
    observed: list[tuple[Factor, str]] = field(default_factory=list)
    derived: list[Dims] = field(default_factory=list)


@dataclass(slots=True)
class Call:
    """One operator call under abstract interpretation."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    meaning: Callable[[Tensor], Meaning]
    trace: Trace
    points: dict[int, Dims] = field(default_factory=dict)
    """For each output that holds positions the dimensions of an operand whose positions they are."""

    def argument(self, index: int, name: str, default: Any = None) -> Any:
        """An argument by position or name."""
        return self.args[index] if len(self.args) > index else self.kwargs.get(name, default)

    def named(self, name: str, default: Any = None) -> Any:
        """An argument by the name it has in the operator's schema."""
        for index, parameter in enumerate(self.function._schema.arguments):
            if parameter.name == name:
                if index < len(self.args):
                    return self.args[index]
                if name in self.kwargs:
                    return self.kwargs[name]
                return parameter.default_value if parameter.has_default_value() else default
        return default

    def of(self, tensor: Tensor) -> Dims:
        """The dimensions of any tensor of the call."""
        return [expand(dim) for dim in self.meaning(tensor).dims]

    def dims(self, index: int) -> Dims:
        """The dimensions of the tensor argument at ``index``."""
        return self.of(self.args[index])

    def tensors(self) -> list[Tensor]:
        """All tensor operands, lists of tensors included."""
        return list(tensors_in((self.args, self.kwargs)))

    def shape(self, index: int = 0) -> list[int]:
        """The shape of an output."""
        result = self.result[index] if isinstance(self.result, tuple | list) else self.result
        return list(result.shape)

    def follows(self, index: Tensor, dim: Dim, *, aligned: bool = False) -> bool:
        """Whether the values of ``index`` are positions in what ``dim`` is from now on: then another order changes
        both alike. If they are not, or in several dimensions, ``dim`` keeps its order. Of equal values, as copies are,
        the first is found whatever their order: copies keep theirs. Unless the index is ``aligned`` with what it
        indexes in all other dimensions, no owner may order ``dim`` apart."""
        points = self.meaning(index).points
        if len(points) == 1 and size_of(points[0]) == size_of(dim):
            pin(Factor(var) for var in inside(points[0]) if var.uniform)
            unify(points[0], dim)
            if not aligned:
                disown_but(expand(dim), ())
            return True
        self.meaning(index).read()
        pin(dim)
        return False

    def contract(self, tensor: Tensor, dim: Dim, *, value: bool = False) -> None:
        """``dim`` of ``tensor`` is summed against another operand: a parameter is read there, a value observed.
        ``value`` says that what is computed from parameters alone stands in the place of a value here."""
        meaning = self.meaning(tensor)
        for factor in dim:
            if meaning.stored and not value:
                if factor.origin is not None:
                    self.trace.reads.append((factor.origin, factor))
            elif meaning.node is not None:
                self.trace.observed.append((factor, meaning.node))

    def product(self, value: Tensor, of_value: Dim, weight: Tensor, of_weight: Dim) -> None:
        """``value`` is summed against ``weight``. Where parameters alone make both (a table that a small network
        computes, a factored matrix), the first is written and observed, and only the second is read."""
        self.contract(value, of_value, value=self.meaning(value).stored and self.meaning(weight).stored)
        self.contract(weight, of_weight)

    def join(self, a: Dim, b: Dim, shared: Sequence[tuple[Dim, Dim]] = ()) -> None:
        """Sum over ``a`` of one operand against ``b`` of another. What an owner outside owns may be ordered apart only
        if that owner is one of the ``shared`` dimensions, at the same index in both operands."""
        unify_all(pair for pair in [*shared, (a, b)] if not any(map(alike, pair)))
        common = {f.var for left, right in shared if left and right for f in expand(left)}
        disown_but(a, common)
        disown_but(b, common)


def disown_but(dim: Dim, owners: Container[Var]) -> None:
    """Disown the variables of a dimension whose owner is neither in the dimension itself nor among ``owners``; what
    nobody owns yet shall have no owner later."""
    settle([dim])
    mine = inside(dim)
    for var in mine:
        if any(outer not in mine and outer not in owners for outer in owners_of(var)):
            disown(var)


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and dictionaries."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from tensors_in(item)
    elif isinstance(tree, tuple | list):
        for item in tree:
            yield from tensors_in(item)


Rule = Callable[[Call], Outputs]
RuleT = TypeVar("RuleT", bound=Rule)
RULES: dict[str, Rule] = {}


FOLLOWING = {
    "aten::gather": "index",
    "aten::index": "indices",
    "aten::index_select": "index",
    "aten::scatter": "index",
    "aten::take": "index",
    "aten::take_along_dim": "indices",
    "aten::one_hot": "self",
    "aten::embedding": "indices",
}
"""Operators whose rules say themselves what becomes of the positions that they are given (:meth:`Call.follows`), and
the argument that holds them."""

MOVING = frozenset(
    f"aten::{name}"
    for name in (
        "view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten", "squeeze", "unsqueeze", "expand",
        "repeat", "permute", "transpose", "t", "mT", "movedim", "slice", "select", "unbind", "chunk", "split",
        "split_with_sizes", "clone", "contiguous", "detach", "alias", "to", "_to_copy",
    )
)  # fmt: skip
"""Operators after which positions still point where they pointed, wherever they stand now."""


def moves(call: Call) -> bool:
    """Whether a call moves positions, and what comes out can be positions."""
    first = call.result[0] if isinstance(call.result, tuple | list) else call.result
    return call.function._schema.name in MOVING and first.dtype in (torch.int32, torch.int64)


def axis_rule(*names: str) -> Callable[[RuleT], RuleT]:
    """Enter a rule for operators by name: ``namespace::operator``, ``namespace.operator`` as reports have it, or the
    bare name of an aten operator."""

    def enter(rule: RuleT) -> RuleT:
        for name in names:
            space, _, own_name = name.replace("::", ".").partition(".")
            RULES[f"{space}::{own_name}" if own_name else f"aten::{space}"] = rule
        return rule

    return enter


def similar_rule(name: str) -> str | None:
    """The operator with a rule whose name is nearly ``name`` (``namespace::operator``), in whatever namespace."""
    own_name = name.split("::")[-1]
    close = [known for known in RULES if known.split("::")[-1] == own_name]
    return next(iter(close or difflib.get_close_matches(name, RULES, n=1, cutoff=0.85)), None)


def rule_for(function: Any) -> Rule | None:
    """The rule of an operator overload; the in-place spelling of an operator has the rule of the pure one."""
    name = function._schema.name
    found = RULES.get(name)
    if found is None and name.endswith("_"):
        found = RULES.get(name[:-1])
    if found is None and torch.Tag.pointwise in function.tags:
        found = RULES["fxfuse::pointwise"]
    return found


def own(dim: Dim, outer: Dim) -> None:
    """``dim`` of a parameter, of which nothing is known yet, is owned by the innermost factor of ``outer``."""
    factors = expand(dim)
    if len(factors) == 1 and isinstance(factors[0].var.outer, Unset) and expand(outer):
        factors[0].var.outer = expand(outer)[-1].var


def positive(dim: int, rank: int) -> int:
    """A dimension number counted from the front."""
    return dim + rank if dim < 0 else dim


def at(value: Any, k: int) -> Any:
    """An argument for the ``k``-th spatial dimension: one for each, or one for all."""
    return value[k if len(value) > 1 else 0] if isinstance(value, tuple | list) else value


def dimensions(value: Any, rank: int) -> list[int]:
    """A ``dim`` argument as a list of dimension numbers; none given means all."""
    if value is None or (isinstance(value, tuple | list) and not value):
        return list(range(rank))
    return [positive(d, rank) for d in (value if isinstance(value, tuple | list) else [value])]
