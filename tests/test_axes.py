"""The axes pass as a whole: random networks, known networks, tied and unused parameters, what is observed, speed."""

import time
from random import Random

import pytest
import torch
import torch.nn.functional as F
from axis_nets import Net, check, found, program, tensor
from axis_random import Builder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import fx, nn

from fxfuse.layouts import spaces_in
from fxfuse.models_zoo import ZOO
from fxfuse.models_zoo.randomise import randomise
from fxfuse.passes.axes import axes
from fxfuse.passes.axis_law import permutation_error
from fxfuse.types import Axes, Leaf, Program


def random_law(seed: int, steps: int) -> None:
    builder = Builder(Random(seed))
    p = program(builder.build(steps), 0.3 * tensor(5))  # small: products of products magnify rounding
    result = axes(p)
    assert not result.opaque
    for draw in range(3):
        error = permutation_error(p, result, draw)
        assert error < 1e-9, f"{error:.1g} with {found(result)}: {builder.log}"


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10**9), st.integers(3, 14))
def test_the_law_holds_for_random_networks(seed: int, steps: int) -> None:
    random_law(seed, steps)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10**9), st.integers(3, 24))
def test_the_law_holds_for_many_random_networks(seed: int, steps: int) -> None:
    random_law(seed, steps)


ZOO_SPACES = {
    "mlp": (2, 0), "vgg11_bn": (8, 0), "resnet20": (12, 0), "resnet18": (12, 0), "vit": (9, 4), "unet": (11, 0),
    "mobile_se": (5, 0), "grouped": (5, 2), "lstm": (3, 0), "transformer_encoder": (9, 4), "mixer": (5, 0),
    "convnext": (3, 0), "maxout": (4, 2), "dense": (5, 0), "tied_autoencoder": (1, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", ZOO_SPACES)
def test_the_zoo_has_the_spaces_that_a_person_would_count(name: str) -> None:
    entry = ZOO[name]
    module = randomise(entry.factory(), seed=0).eval()
    p = Program(name, fx.symbolic_trace(module), entry.example(), "fx")
    result = axes(p)
    assert permutation_error(p, result) < 1e-10
    assert (len(result.spaces), sum(space.outer is not None for space in result.spaces)) == ZOO_SPACES[name]
    assert not result.opaque


FAMOUS = {"resnet18": (12, 0), "densenet121": (120, 0), "vit_b_16": (49, 24), "swin_t": (52, 24)}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMOUS)
def test_famous_networks(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    module = randomise(getattr(models, name)(), seed=0).eval()
    p = Program(name, fx.symbolic_trace(module), (torch.randn(2, 3, 224, 224),), "fx")
    result = axes(p)
    assert permutation_error(p, result) < 1e-9
    assert (len(result.spaces), sum(space.outer is not None for space in result.spaces)) == FAMOUS[name]
    weights = [k for k, v in module.named_parameters() if v.dim() > 1]
    assert all(any(spaces_in(layout) for layout in result.state[k].dims) for k in weights)


def two_layers() -> Axes:
    net = Net(lambda n, x: n.b(torch.relu(n.a(x))), a=nn.Linear(5, 8), b=nn.Linear(8, 3))
    return axes(program(net, tensor(5)))


def test_reads_are_what_is_summed_over() -> None:
    result = two_layers()
    assert result.state["a.weight"].dims == (Leaf(8, 0), Leaf(5))
    assert result.state["a.weight"].reads == frozenset()
    assert result.state["b.weight"].dims == (Leaf(3), Leaf(8, 0))
    assert result.state["b.weight"].reads == {(1, 0)}


def test_neurons_are_observed_where_they_are_summed_over() -> None:
    assert two_layers().observed == {0: ("relu",)}


def test_neurons_of_learned_queries_are_observed_where_they_meet_learned_keys() -> None:
    """No sample ever reaches them: what one operand computes stands in the place of a value."""
    net = Net(
        lambda n, x: n.b(F.scaled_dot_product_attention(n.q(n.w)[None], n.k(n.w)[None], n.a(x))),
        w=(6, 5), q=nn.Linear(5, 8), k=nn.Linear(5, 8), a=nn.Linear(5, 7), b=nn.Linear(7, 3),
    )  # fmt: skip
    result = check(net, tensor(6, 5))
    assert found(result) == "5 8 7"
    assert sorted(result.observed) == [space.id for space in result.spaces]


def test_values_have_the_batch_of_the_example() -> None:
    assert two_layers().values["relu"].dims == (Leaf(3), Leaf(8, 0))


def test_a_pinned_node_keeps_its_order() -> None:
    net = Net(lambda n, x: n.c(n.b(n.a(x))), a=nn.Linear(5, 8), b=nn.Linear(8, 6), c=nn.Linear(6, 3))
    p = program(net, tensor(5))
    assert found(axes(p)) == "8 6"
    assert found(axes(p, pinned=("a",))) == "6"


def test_a_parameter_that_nothing_uses_is_no_space() -> None:
    net = Net(lambda n, x: n.b(n.a(x)), a=nn.Linear(5, 8), b=nn.Linear(8, 3), idle=(7, 9))
    assert found(check(net, tensor(5))) == "8"


def test_tied_parameters_have_one_meaning_under_both_names() -> None:
    layers = {"a": nn.Linear(5, 8), "b": nn.Linear(8, 8), "twin": nn.Linear(8, 8), "c": nn.Linear(8, 3)}
    layers["twin"].weight = layers["b"].weight
    result = check(Net(lambda n, x: n.c(n.twin(torch.relu(n.b(n.a(x))))), **layers), tensor(5))
    assert found(result) == "8"
    assert result.state["twin.weight"] == result.state["b.weight"]


def test_a_stated_batch_size_is_met_halfway() -> None:
    """Code that knows the batch size cannot run at another; the run at the example's own is as good."""
    net = Net(lambda n, x: n.b(n.a(x).reshape(3, 2, 4).flatten(1)), a=nn.Linear(5, 8), b=nn.Linear(8, 3))
    result = check(net, tensor(5))
    assert found(result) == "2 2*4"
    assert not result.opaque


def test_an_input_that_shares_no_batch_keeps_its_shape() -> None:
    net = nn.Bilinear(4, 5, 3)
    p = Program("net", fx.symbolic_trace(net), (torch.randn(3, 4), torch.randn(3, 5)), "fx")
    assert axes(p).spaces == ()


@pytest.mark.parametrize("residual", [False, True])
def test_time_is_linear_in_the_number_of_nodes(residual: bool) -> None:
    def seconds(blocks: int) -> float:
        layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(blocks)])

        def body(n: Net, x: torch.Tensor) -> torch.Tensor:
            for layer in n.layers:
                x = x + torch.relu(layer(x)) if residual else torch.relu(layer(x))
            return n.head(x)

        p = program(Net(body, layers=layers, head=nn.Linear(4, 3)), tensor(4))
        times = []
        for _ in range(3):  # the best of three: what else the machine does only ever adds
            start = time.process_time()
            axes(p)
            times.append(time.process_time() - start)
        return min(times)

    seconds(10)
    assert seconds(400) < 10 * max(seconds(100), 0.05)
