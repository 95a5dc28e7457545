"""Kinship: one for copies, high after a little training, chance for strangers."""

import copy

import pytest
import torch
from laws import analysed, model, with_permuted_copy

from fxfuse.models_zoo.zoo import ZOO
from fxfuse.passes.ancestry import kinship, kinship_note
from fxfuse.passes.correspond import correspond
from fxfuse.pipeline import analyse, fuse

NAMES = ["mlp", "digits_net", "vit", "lstm"]


@pytest.mark.parametrize("name", NAMES)
def test_copies_are_kin_and_strangers_are_not(name):
    own = analysed(name)
    assert kinship(correspond(own, [own, own])) == {(0, 1): 1.0}
    strangers = correspond(own, [own, analysed(name, seed=1), analysed(name, seed=2)])
    assert max(kinship(strangers).values()) < 0.4  # chance is one over the width


@pytest.mark.parametrize("name", NAMES)
def test_a_fine_tuned_network_is_kin(name):
    start = model(name)
    tuned = copy.deepcopy(start)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tuned.parameters():
            noise = torch.randn(parameter.shape, generator=random)
            parameter.add_(0.2 * parameter.std().nan_to_num(0.0) * noise)
    found = [analyse(net, ZOO[name].example(3)) for net in (start, tuned)]
    assert kinship(correspond(found[0], found))[0, 1] > 0.9


def test_a_permuted_copy_is_a_stranger():
    assert kinship(with_permuted_copy("mlp"))[0, 1] < 0.4


def test_nothing_to_compare():
    own = analysed("mlp")
    assert kinship(correspond(own, [own])) == {}
    assert kinship_note(correspond(own, [own])) is None
    wide = analysed("mlp", width=20)
    assert kinship(correspond(own, [own, wide])) == {(0, 1): 0.0}


def test_the_result_says_it():
    nets = [model("mlp", seed=seed) for seed in (0, 1)]
    x = ZOO["mlp"].example(3)
    apart = fuse(nets, method="lerp", example=x, compare=False).notes
    assert any("do not share an ancestor" in note for note in apart)
    alike = fuse([nets[0], nets[0]], method="average", example=x, compare=False).notes
    assert any("share an ancestor: 100%" in note for note in alike)
