"""Targets are the parents' values through their groupings; answers are their ensemble; errors are relative."""

import pytest
import torch
from fits import CPU, case
from laws import analysed, data, grouped, outputs, statistics, with_permuted_copy
from torch.nn import functional as F

from fxfuse.errors import DataError, MethodError
from fxfuse.models_zoo.zoo import ZOO
from fxfuse.passes.augment import Mixture
from fxfuse.passes.group import group
from fxfuse.passes.subgraph import capture
from fxfuse.passes.teacher import make_teacher, relative_error


@pytest.mark.parametrize("name", ["digits_net", "vit", "packed_qkv", "lstm", "dense", "grouped"])
def test_the_target_of_a_permuted_copy_is_the_networks_own_value(name):
    pairs = with_permuted_copy(name)
    found = statistics(pairs, data(name))
    spaces = pairs.reference.axes.spaces
    widths, targets = {s.id: pairs.widths(s.id) for s in spaces}, {s.id: s.size for s in spaces}
    groupings = group(spaces, found, widths, targets, "hungarian", {}, (0.5, 0.5), 0)
    teacher = make_teacher(pairs, groupings, (0.5, 0.5), found, "probabilities", CPU)
    nodes = [level.boundary for level in pairs.reference.partition.levels]
    inputs = ZOO[name].example(4, seed=9)
    fused = outputs(capture(grouped(pairs, found, "hungarian"), nodes), inputs)
    values = [outputs(capture(p.program.module, nodes), inputs) for p in pairs.parents]
    seen = 0
    for i, node in enumerate(nodes):
        if teacher.can_target(node) and node not in teacher.outputs:
            target = teacher.target(node, [v[i] for v in values])
            weight = teacher.neuron_weight(node, target)
            assert teacher.error(node, fused[i], target, weight) < 1e-8
            seen += 1
    assert seen


def test_masses_are_the_importance_grouped_and_have_mean_one():
    teacher = case().teacher
    assert teacher.mass
    for space, mass in teacher.mass.items():
        assert len(mass) == teacher.pairs.reference.axes.spaces[space].size
        assert mass.mean().item() == pytest.approx(1.0)
        assert (mass >= 0).all()


def test_answers():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(6, 5, generator=generator) for _ in range(2))
    mean = 0.5 * (a.softmax(1) + b.softmax(1))
    teacher = case().teacher
    assert torch.allclose(teacher.answer([a, b]), mean)
    assert torch.allclose(teacher.answer([a.softmax(1), b.softmax(1)]), mean)  # probabilities already
    assert torch.allclose(case(head="logits").teacher.answer([a, b]), (a + b) / 2)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    own = case(head="labels").teacher
    assert torch.equal(own.answer([a, b], labels), F.one_hot(labels, 5).float())
    mixture = Mixture(torch.full((6,), 0.25), torch.arange(6).flip(0))
    hard = F.one_hot(labels, 5).float()
    assert torch.allclose(own.answer([a, b], labels, mixture), 0.25 * hard + 0.75 * hard.flip(0))
    with pytest.raises(MethodError, match="needs labelled calibration data"):
        own.answer([a, b])


def test_the_divergence_is_torchs_and_zero_at_the_answer():
    generator = torch.Generator().manual_seed(0)
    given, wanted = torch.randn(6, 5, generator=generator), torch.randn(6, 5, generator=generator).softmax(1)
    teacher = case().teacher
    expected = F.kl_div(given.log_softmax(1), wanted, reduction="batchmean")
    assert torch.allclose(teacher.answer_loss(given, wanted), expected, atol=1e-6)
    assert teacher.answer_loss(wanted.log(), wanted).item() == pytest.approx(0, abs=1e-6)


def test_the_relative_error_is_one_for_the_mean():
    target = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    assert relative_error(target.mean(0, keepdim=True).expand(50, 3), target).item() == pytest.approx(1, abs=1e-5)
    teacher, node = case("mlp").teacher, analysed("mlp").partition.levels[0].boundary
    value = torch.randn(50, 12, generator=torch.Generator().manual_seed(1))
    ones = torch.ones(1, 12)
    assert teacher.error(node, value.mean(0, keepdim=True), value, ones).item() == pytest.approx(1, abs=1e-5)
    assert teacher.error(node, value, value, ones) == 0


@pytest.mark.parametrize("kind", [torch.int64, torch.uint8])
def test_labels_count_as_in_cross_entropy(kind):
    generator = torch.Generator().manual_seed(0)
    given, parent = (torch.randn(6, 5, generator=generator, requires_grad=True) for _ in range(2))
    labels = torch.tensor([0, 1, -100, 3, -100, 0]) if kind == torch.int64 else torch.tensor([0, 1, 2, 3, 4, 0])
    teacher = case(head="labels").teacher
    wanted = teacher.answer([parent.detach()], labels.to(kind))
    loss = teacher.answer_loss(given, wanted)
    expected = F.cross_entropy(given, labels)
    assert torch.allclose(loss, expected)
    (own,), (other,) = torch.autograd.grad(loss, given), torch.autograd.grad(expected, given)
    assert torch.allclose(own, other, atol=1e-7)
    there = labels != -100
    share = (given.argmax(1) != labels)[there].float().mean()
    assert torch.allclose(teacher.disagreement(given, wanted), share)


def test_a_batch_without_labels_teaches_nothing():
    teacher = case(head="labels").teacher
    given = torch.randn(4, 5, requires_grad=True)
    loss = teacher.answer_loss(given, teacher.answer([given.detach()], torch.full((4,), -100)))
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, given)[0].any()


@pytest.mark.parametrize("label", [5, -1])
def test_labels_out_of_range_are_refused(label):
    with pytest.raises(DataError, match=rf"lie in 0\.\.4, the network having 5 classes\. Got {label}"):
        case(head="labels").teacher.answer([torch.randn(2, 5)], torch.tensor([0, label]))
