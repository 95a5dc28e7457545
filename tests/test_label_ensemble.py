"""The ensemble over a union of classes: the plain one where all parents know all, and a better one where not."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fxfuse.label_space import label_space
from fxfuse.passes.label_ensemble import LabelEnsemble, label_ensemble
from fxfuse.passes.trace import trace
from fxfuse.samples import TensorSamples

CPU = torch.device("cpu")
NAMES = ("a", "b")


def ensemble(*maps, weights=(0.5, 0.5)):
    labels = label_space(maps, NAMES[: len(maps)], weights)
    return LabelEnsemble(labels, weights, (3.0,) * len(maps))


def logits(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def test_equal_classes_give_the_plain_mean_in_the_unions_order():
    a, b = logits((6, 3), (6, 3))
    found = ensemble([0, 1, 2], [2, 0, 1], weights=(0.25, 0.75)).probabilities([a, b])
    expected = 0.25 * a.softmax(1) + 0.75 * b.softmax(1)[:, [1, 2, 0]]
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("maps", [([0, 1], [2, 3]), ([0, 1, 2], [2, 3]), ([0, 1, 2, 3], [1, 2])])
def test_it_is_a_distribution_wherever_the_classes_are(maps):
    own = ensemble(*maps)
    a, b = logits((6, len(maps[0])), (6, len(maps[1])))
    found = own.probabilities([a, b])
    assert found.shape == (6, 4)
    assert (found >= 0).all()
    assert torch.allclose(found.sum(1), torch.ones(6), atol=1e-5)
    assert torch.allclose(own.probabilities([a.softmax(1), b.softmax(1)]), found, atol=1e-5)
    image = own.probabilities([x.view(2, 3, 1, -1).movedim(-1, 1) for x in (a, b)])
    assert torch.allclose(image.movedim(1, -1).reshape(6, 4), found, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("maps", [([0, 1, 2, 3, 4], [5, 6, 7, 8, 9]), ([0, 1, 2, 3, 4, 5], [4, 5, 6, 7, 8, 9])])
def test_no_chance_is_negative_however_sure_the_parents_are(maps, scale):
    """Rounding once took chances below zero, which have no logarithm: no fit was possible."""
    a, b = logits((4000, len(maps[0])), (4000, len(maps[1])))
    generator = torch.Generator().manual_seed(1)
    slope = torch.randn(len(maps[0]) + len(maps[1]), 10, generator=generator)
    own = replace(ensemble(*maps), slope=slope, offset=torch.randn(10, generator=generator))
    found = own.probabilities([scale * a, scale * b])
    assert (found >= 0).all()
    assert torch.xlogy(found, found).isfinite().all()
    assert torch.allclose(found.sum(1), torch.ones(4000), atol=1e-5)


def test_among_the_classes_of_one_parent_its_own_order_holds_where_parents_share_none():
    a, b = logits((20, 3), (20, 2))
    found = ensemble([0, 1, 2], [3, 4]).probabilities([a, b])
    inner = found[:, :3] / found[:, :3].sum(1, keepdim=True)
    assert torch.allclose(inner, a.softmax(1), atol=1e-4)


def test_logits_are_averaged_over_those_who_know():
    a, b = logits((6, 2), (6, 2))
    found = ensemble([0, 1], [1, 2]).logits([a, b])
    expected = torch.stack([a[:, 0], (a[:, 1] + b[:, 0]) / 2, b[:, 1]], 1)
    assert torch.allclose(found, expected, atol=1e-6)


def blobs(count, seed):
    """Six classes, each around a corner of a simplex."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 6
    return 4 * torch.eye(6)[labels] + torch.randn(count, 6, generator=generator), labels


def networks():
    """Each knows three classes, and the second is much surer than the first, also of what it does not know."""
    found = []
    for scale, first in ((1.0, 0), (9.0, 3)):
        layer = nn.Linear(6, 3)
        with torch.no_grad():
            layer.weight.copy_(scale * torch.eye(6)[first : first + 3])
            layer.bias.zero_()
        found.append(trace(layer.eval(), torch.zeros(3, 6), name=f"net {first}"))
    return found


def accuracy(values, labels):
    return float((values.argmax(1) == labels).double().mean())


@pytest.mark.parametrize("labelled", [False, True])
def test_calibration_makes_parents_of_unlike_confidence_compare(labelled):
    parents = networks()
    space = label_space([[0, 1, 2], [3, 4, 5]], NAMES, (0.5, 0.5))
    seen, seen_labels = blobs(200, 1)
    samples = TensorSamples((seen,), seen_labels if labelled else None)
    own = label_ensemble(space, (0.5, 0.5), parents, samples, device=CPU)
    inputs, labels = blobs(1200, 2)
    with torch.no_grad():
        values = [parent.module(inputs) for parent in parents]
    plain = torch.cat([value.softmax(1) for value in values], 1)
    assert accuracy(plain, labels) < 0.8
    assert accuracy(own.probabilities(values), labels) > 0.93


def test_without_data_it_still_answers():
    parents = networks()
    space = label_space([[0, 1, 2], [3, 4, 5]], NAMES, (0.5, 0.5))
    own = label_ensemble(space, (0.5, 0.5), parents, None, device=CPU)
    assert own.slope is None
    assert own.probabilities([parent.module(torch.randn(4, 6)) for parent in parents]).shape == (4, 6)


def test_what_fits():
    own = ensemble([0, 1], [1, 2])
    assert own.fits(logits((6, 2), (6, 2)))
    assert not own.fits(logits((6, 2), (6, 3)))
    assert not own.fits(logits((6, 2)))
    assert not own.fits(logits((6,), (6,)))
