"""Fisher precisions and divergences, against their definitions and torch's own."""

import pytest
import torch
from laws import CPU, analysed, data, model
from torch import nn
from torch.distributions import Normal, kl_divergence

from fxfuse.errors import MethodError
from fxfuse.models_zoo.zoo import ZOO
from fxfuse.passes.correspond import correspond
from fxfuse.passes.posteriors import _divergence, check_precisions, fisher_precisions, with_divergence
from fxfuse.passes.weight_statistics import parameter_names, parameter_scales, weight_statistics
from fxfuse.pipeline import analyse, fuse
from fxfuse.samples import TensorSamples


def test_the_divergence_is_that_of_gaussians():
    random = torch.Generator().manual_seed(0)
    m = torch.randn(6, 5, generator=random, dtype=torch.float64)
    precision = torch.rand(6, 5, generator=random, dtype=torch.float64) + 0.2
    found = _divergence(m, precision)
    for i in range(5):
        for j in range(5):
            p, q = (Normal(m[:, k], precision[:, k] ** -0.5) for k in (i, j))
            assert float(found[i, j]) == pytest.approx(float(kl_divergence(p, q).sum()), rel=1e-9, abs=1e-9)


def test_the_fisher_information_of_logistic_regression():
    """For a linear layer with softmax it is ``E[x^2 p (1 - p)]``, here from many draws of one answer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3))
    x = torch.randn(4, 4)
    found = analyse(net, x)
    pairs = correspond(found, [found])
    many = x.repeat(1500, 1)
    (precisions,) = fisher_precisions(pairs, TensorSamples([many]), device=CPU, count=6000)
    p = net(x).softmax(1).detach()
    expected = ((p * (1 - p)).T @ x.square()) / 4
    mine = (precisions["0.weight"] - 1 / net[0].weight.detach().square().mean()) / len(many)
    torch.testing.assert_close(mine, expected, rtol=0.15, atol=0.005)


def test_precisions_are_the_same_bits_for_a_seed_and_fit_the_parameters():
    own = analysed("digits_net")
    pairs = correspond(own, [own, analysed("digits_net", seed=1)])
    first, second = (fisher_precisions(pairs, data("digits_net", 12), device=CPU, seed=3) for _ in range(2))
    state = own.program.module.state_dict()
    for a, b in zip(first, second, strict=True):
        assert set(a) == set(parameter_names(pairs))
        assert all(torch.equal(a[n], b[n]) and a[n].shape == state[n].shape and bool((a[n] > 0).all()) for n in a)


def test_equal_precisions_give_squared_distances():
    own = analysed("mlp")
    pairs = correspond(own, [own, analysed("mlp", seed=1)])
    space = pairs.reference.axes.spaces[0]
    ones = tuple(
        {n: torch.full_like(own.program.module.state_dict()[n], 2.0) for n in parameter_names(pairs)} for _ in (0, 1)
    )
    plain = weight_statistics(pairs, space, {}, (0.5, 0.5), dict.fromkeys(parameter_scales(pairs), 1.0), part="written")
    assert plain is not None
    found = with_divergence(plain, pairs, space, {}, ones, part="written", foreign="skip").divergence
    energy = plain.gram.diagonal()
    distance = (energy[:, None] + energy[None, :] - 2 * plain.gram) * plain.rows
    torch.testing.assert_close(found, distance, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda own: own.pop("1.weight"), "needs a precision of shape .* for 1.weight. Got none"),
        (lambda own: own.update({"1.bias": torch.ones(3)}), "Got one of shape"),
        (lambda own: own["1.bias"].zero_(), "must be positive and finite"),
        (lambda own: own["1.bias"].fill_(float("nan")), "must be positive and finite"),
    ],
)
def test_bad_precisions_are_named(change, message):
    own = analysed("mlp")
    pairs = correspond(own, [own])
    given = {name: torch.ones_like(own.program.module.state_dict()[name]) for name in parameter_names(pairs)}
    change(given)
    with pytest.raises(MethodError, match=message):
        check_precisions(pairs, [given])
    with pytest.raises(MethodError, match="one entry per parent"):
        check_precisions(pairs, [])


def test_kl_takes_precisions_or_data_and_says_if_it_has_neither():
    nets = [model("mlp", seed=seed) for seed in (0, 1)]
    x = ZOO["mlp"].example(3)
    precisions = [{n: torch.ones_like(p) for n, p in net.named_parameters()} for net in nets]
    given = fuse(nets, method="kl", precisions=precisions, example=x, compare=False).state_dict()
    assert all(bool(value.isfinite().all()) for value in given.values())
    with pytest.raises(MethodError, match="merges posteriors: give the precisions"):
        fuse(nets, method="kl", example=x)
    with pytest.raises(MethodError, match="uses no precisions"):
        fuse(nets, method="ot-weights", precisions=precisions, example=x)
