"""Every entry of the operator table: permuting all spaces changes nothing, and no space is missing."""

import ast
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import axis_cases
import axis_definition_cases
import axis_research_cases
import axis_tie_cases
import axis_token_cases
import pytest
import torch
from axis_nets import Net, Net2, check, found, program, tensor
from torch import Tensor, nn

from fxfuse.layouts import spaces_in
from fxfuse.passes.axes import axes
from fxfuse.passes.axis_law import permutation_error
from fxfuse.passes.axis_rules import RULES, Call, axis_rule
from fxfuse.passes.axis_rules.core import Outputs
from fxfuse.types import Axes, Program

CASES = {
    **axis_cases.CASES,
    **axis_token_cases.CASES,
    **axis_research_cases.CASES,
    **axis_definition_cases.CASES,
    **axis_tie_cases.CASES,
}


@pytest.mark.parametrize("name", CASES)
def test_permuting_every_space_changes_nothing_and_no_space_is_missing(name: str) -> None:
    expected, make, x = CASES[name]
    result = check(make(), x)
    assert found(result) == expected
    assert not result.opaque


@pytest.mark.parametrize("name", ["l2 residual", "conv bn", "qkv 3hd", "grouped", "lstm bi 2", "glu"])
def test_the_law_is_not_empty(name: str) -> None:
    """Leaving one tensor as it was must show: otherwise the law would hold for any rule."""
    _, make, x = CASES[name]
    p = program(make(), x)
    result = axes(p)
    for key, value in p.module.state_dict().items():
        if value.is_floating_point() and _moves(result, key):
            worst = max(permutation_error(p, result, seed, keep=frozenset({key})) for seed in range(3))
            assert worst > 1e-6, key


def _moves(result: Axes, key: str) -> bool:
    return any(spaces_in(layout) for layout in result.state[key].dims)


def test_two_inputs_and_cross_attention() -> None:
    net = Net2(
        lambda n, x, y: n.b(n.m(n.a(x), n.c(y), n.c(y), need_weights=False)[0]),
        a=nn.Linear(5, 8), c=nn.Linear(4, 8), m=nn.MultiheadAttention(8, 2, batch_first=True), b=nn.Linear(8, 3),
    )  # fmt: skip
    assert found(check(net, tensor(6, 5), tensor(7, 4))) == "8 2 2*4 2*4 8"  # one packed weight reads both


def test_a_state_that_an_encoder_computes_ties_its_neurons_to_the_units() -> None:
    """A linear layer without a bias: nothing has touched its neurons when they become the initial state."""
    net = Net(
        lambda n, x: n.d(n.l(x, n.e(x[:, 0]).unsqueeze(0))[0]),
        l=nn.GRU(5, 6, batch_first=True), e=nn.Linear(5, 6, bias=False), d=nn.Linear(6, 3),
    )  # fmt: skip
    assert found(check(net, tensor(4, 5))) == "6"


def test_the_rows_of_the_table_are_operators_or_named_so() -> None:
    """A misspelt name would never be looked up."""
    unknown = []
    for name in RULES:
        space, operator = name.split("::")
        if space == "aten" and not hasattr(torch.ops.aten, operator) and not hasattr(torch.ops.aten, operator + "_"):
            unknown.append(operator)
    assert not unknown


def test_a_rule_of_ones_own_frees_what_an_unknown_operator_pins() -> None:
    @torch.library.custom_op("fxfuse_test::double", mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @double.register_fake
    def _(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x)

    net = Net(
        lambda n, x: n.b(torch.ops.fxfuse_test.double(n.a(x))) + n.d(n.c(x)),
        a=nn.Linear(5, 8), b=nn.Linear(8, 3), c=nn.Linear(5, 6), d=nn.Linear(6, 3),
    )  # fmt: skip
    p = program(net, tensor(5))
    node = next(n for n in p.module.graph.nodes if "double" in n.name)
    node.meta["where"] = "net.py:12 `y = double(x)`"
    before = axes(p)
    assert found(before) == "6"  # the other branch is not touched
    (opaque,) = before.opaque
    assert (opaque.operator, opaque.node) == ("fxfuse_test.double", node.name)
    assert opaque.where == "net.py:12 `y = double(x)`"
    assert opaque.reason == "it has no axis rule"
    assert permutation_error(p, before) < 1e-10

    def rule(call: Call) -> Outputs:
        return call.dims(0)

    axis_rule("fxfuse_test::duoble")(rule)
    assert axes(p).opaque[0].reason == "it has no axis rule; there is one for 'fxfuse_test::duoble'"
    del RULES["fxfuse_test::duoble"]
    axis_rule("fxfuse_test.double")(rule)  # as the report has it
    try:
        after = axes(p)
        assert found(after) == "8 6"
        assert not after.opaque
        assert permutation_error(p, after) < 1e-10
    finally:
        del RULES["fxfuse_test::double"]


def _in_runs(a: Tensor, b: Tensor, offs: Tensor) -> Tensor:
    """``torch.nn.functional.grouped_mm`` by its definition: its kernels do not know float64."""
    runs = list(pairwise([0, *offs.tolist()]))
    if a.ndim == b.ndim:
        return torch.stack([a[:, i:j] @ b[i:j] for i, j in runs])
    if a.ndim == 2:
        return torch.cat([a[i:j] @ w for (i, j), w in zip(runs, b, strict=True)])
    return torch.cat([w @ b[:, i:j] for (i, j), w in zip(runs, a, strict=True)], 1)


@pytest.fixture(scope="module")
def grouped_mm() -> Iterator[torch.library.CustomOpDef]:
    operator = torch.library.custom_op("fxfuse_tests::grouped_mm", _in_runs, mutates_args=())
    operator.register_fake(lambda a, b, offs: a.new_empty(*offs.shape * (a.ndim == b.ndim), a.shape[-2], b.shape[-1]))
    axis_rule("fxfuse_tests::grouped_mm")(RULES["aten::_grouped_mm"])
    yield operator
    del RULES["fxfuse_tests::grouped_mm"]


def test_experts_that_each_take_a_run_of_rows_share_their_hidden_order(grouped_mm: torch.library.CustomOpDef) -> None:
    """The gate's positions are sorted by value: experts keep their order, the stream and the hidden width do not."""

    def body(n: Net, x: Tensor) -> Tensor:
        h = n.e(x).flatten(0, 1)
        share, chosen = n.g(h).softmax(-1).topk(2)
        expert, order = chosen.flatten().sort()
        offsets = torch.searchsorted(expert, torch.arange(4), right=True, out_int32=True)
        gate, up = grouped_mm(h[order // 2], n.u.mT, offsets).chunk(2, 1)
        y = grouped_mm(gate.sigmoid() * up, n.d.mT, offsets) * share.flatten()[order, None]
        return n.b(y[order.argsort()].unflatten(0, (-1, 2)).sum(1))

    net = Net(
        body,
        e=nn.Linear(5, 8), g=nn.Linear(8, 4), u=(4, 32, 8), d=(4, 8, 16), b=nn.Linear(8, 3),
    )  # fmt: skip
    result = check(net, tensor(6, 5))
    assert not result.opaque
    assert found(result) == "16 8 8"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("columns in runs", "4 8"), ("what is summed in runs", "8 6"), ("no runs", "2 2*8")],
)
def test_products_in_runs(name: str, expected: str, grouped_mm: torch.library.CustomOpDef) -> None:
    ends = torch.tensor([2, 6], dtype=torch.int32)
    if name == "columns in runs":  # 2 matrices of 4 x 8, and 6 columns, of which 2 and then 4 meet one of them
        net = Net(lambda n, x: n.b(grouped_mm(n.w, n.a(x).mT[0], ends).mT), w=(2, 4, 8), a=nn.Linear(5, 8),
                  b=nn.Linear(4, 3))  # fmt: skip
    elif name == "what is summed in runs":
        net = Net(lambda n, x: n.b(grouped_mm(n.a(x)[0].mT, n.c(x)[0], ends).mT).sum((0, 1)), a=nn.Linear(5, 8),
                  c=nn.Linear(5, 6), b=nn.Linear(8, 3))  # fmt: skip
    else:
        net = Net(lambda n, x: n.b(torch._grouped_mm(n.a(x).view(-1, 2, 8).transpose(0, 1), n.w).sum(0)), w=(2, 8, 8),
                  a=nn.Linear(5, 16), b=nn.Linear(8, 3))  # fmt: skip
        result = axes(program(net, tensor(5)))
        if any("BF16" in node.reason for node in result.opaque):
            pytest.skip("this torch multiplies matrices in runs in bfloat16 alone")
        assert not result.opaque
        return
    result = check(net, tensor(6, 5))
    assert found(result) == expected
    assert not result.opaque


def test_an_operator_that_cannot_run_without_data_is_opaque_once() -> None:
    @torch.library.custom_op("fxfuse_test::no_fake", mutates_args=())
    def no_fake(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    net = Net(lambda n, x: n.b(torch.ops.fxfuse_test.no_fake(n.a(x))), a=nn.Linear(5, 8), b=nn.Linear(8, 3))
    p = program(net, tensor(5))
    result = axes(p)
    assert [o.operator for o in result.opaque] == ["fxfuse_test.no_fake"]
    assert found(result) == ""
    assert permutation_error(p, result) < 1e-10


def test_code_that_needs_data_is_opaque_in_words() -> None:
    class Asks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum().item() > 1e9 else x * 1.5

    class Leafy(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
            return isinstance(m, Asks) or super().is_leaf_module(m, qualified_name)

    net = nn.Sequential(nn.Linear(5, 8), Asks(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    p = Program("net", torch.fx.GraphModule(net, Leafy().trace(net)), (tensor(5),), "fx")
    result = axes(p)
    assert found(result) == "6"
    assert result.opaque[0].reason.startswith("it cannot be followed without data: ")
    assert permutation_error(p, result) < 1e-10


def test_the_page_about_axes_runs() -> None:
    """The code blocks of docs/axes.md, in order, in one namespace."""
    text = (Path(__file__).parent.parent / "docs" / "axes.md").read_text()
    code = "\n".join(block.split("```")[0] for block in text.split("```python\n")[1:])
    ast.parse(code)
    names: dict[str, object] = {}
    try:
        exec(compile(code, "docs/axes.md", "exec"), names)
    finally:
        RULES.pop("mylib::mirror", None)
