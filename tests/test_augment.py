"""Transformed inputs: what is chosen where, and what each transformation does."""

import pytest
import torch

from fxfuse.errors import MethodError
from fxfuse.passes.augment import choose, transform

IMAGES = torch.rand(8, 3, 16, 20)


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("kinds", "inputs", "expected"),
    [
        ("auto", (IMAGES,), ("shift", "mix")),
        ("auto", (torch.rand(8, 20),), ()),
        ("auto", (IMAGES, torch.rand(8, 5)), ()),
        ("auto", (torch.rand(8, 3, 4, 4),), ()),
        ("auto", (torch.rand(8, 64, 16, 16),), ()),
        ("auto", (torch.zeros(8, 3, 16, 16, dtype=torch.int64),), ()),
        ("none", (IMAGES,), ()),
        ("flip", (IMAGES,), ("flip",)),
        (["mix", "flip"], (IMAGES,), ("flip", "mix")),
        ("mix", (torch.rand(8, 20),), ("mix",)),
    ],
)
def test_what_is_chosen(kinds, inputs, expected):
    assert choose(kinds, inputs) == expected


@pytest.mark.parametrize(
    ("kinds", "inputs", "message"),
    [
        ("shfit", (IMAGES,), "unknown transformation 'shfit': did you mean 'shift'"),
        ("flip", (torch.rand(8, 20),), "'flip' needs images"),
        ("mix", (torch.zeros(8, 7, dtype=torch.int64),), "'mix' needs floating-point inputs"),
    ],
)
def test_what_cannot_be(kinds, inputs, message):
    with pytest.raises(MethodError, match=message):
        choose(kinds, inputs)


def test_nothing_is_nothing():
    (x,), mixture = transform((IMAGES,), (), seeded())
    assert x is IMAGES
    assert torch.equal(mixture.apply(IMAGES), IMAGES)


def test_a_shift_moves_whole_pixels_by_at_most_a_tenth():
    (x,), _ = transform((IMAGES,), ("shift",), seeded())
    padded = torch.nn.functional.pad(IMAGES, (2, 2, 1, 1), mode="replicate")
    for i in range(8):
        shifts = [padded[i, :, r : r + 16, c : c + 20] for r in range(3) for c in range(5)]
        assert any(torch.equal(x[i], s) for s in shifts)
    assert not torch.equal(x, IMAGES)


def test_a_flip_turns_some_samples():
    (x,), _ = transform((IMAGES,), ("flip",), seeded())
    turned = [torch.equal(x[i], IMAGES[i].flip(-1)) for i in range(8)]
    assert all(t or torch.equal(x[i], IMAGES[i]) for i, t in enumerate(turned))
    assert 0 < sum(turned) < 8


def test_a_mixture_is_the_same_for_everything_that_is_mixed():
    other = torch.rand(8, 5)
    (x, y), mixture = transform((IMAGES, other), ("mix",), seeded())
    assert torch.equal(x[4:], IMAGES[4:])  # half of the batch stays
    i = 0
    c, j = mixture.share[i], mixture.partner[i]
    assert torch.allclose(x[i], c * IMAGES[i] + (1 - c) * IMAGES[j])
    assert torch.allclose(y[i], c * other[i] + (1 - c) * other[j])
    assert torch.allclose(mixture.apply(other), y)


def test_the_same_generator_the_same_bits():
    kinds = ("shift", "flip", "mix")
    first, second = (transform((IMAGES,), kinds, seeded())[0][0] for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == IMAGES.shape
