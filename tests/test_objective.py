"""A lesson's targets are the teacher's, its losses are zero where the network gives just those."""

import pytest
import torch
from fits import CPU, case

from fxfuse.passes.objective import Lesson, make_objective
from fxfuse.samples import hold_out


def objective(name="mlp", head="probabilities"):
    made = case(name, head)
    nodes = [level.boundary for level in made.teacher.pairs.reference.partition.levels]
    return make_objective(made.fused, nodes, made.teacher, made.samples, CPU)


@torch.no_grad()
def test_losses_are_those_of_the_levels_and_of_the_answer():
    found = objective()
    lesson = found.lesson(torch.arange(8))
    values = found.graph(*lesson.inputs)
    teacher = found.teacher
    answer = teacher.answer_loss(values[-1], lesson.targets[-1])
    rows = list(zip(found.nodes, values, lesson.targets, strict=True))[:-1]
    inner = torch.stack([teacher.error(n, v, t, teacher.neuron_weight(n, t)) for n, v, t in rows]).mean()
    assert [float(x) for x in found.losses(lesson)] == pytest.approx([float(inner), float(answer)])
    share = (values[-1].argmax(1) != lesson.targets[-1].argmax(1)).float().mean()
    assert found.disagreement(lesson) == pytest.approx(float(share))


@torch.no_grad()
def test_a_network_that_gives_its_targets_has_no_loss():
    found = objective(head="logits")
    lesson = found.lesson(torch.arange(8))
    own = Lesson(lesson.inputs, list(found.graph(*lesson.inputs)))
    assert [float(x) for x in found.losses(own)] == [0.0, 0.0]
    assert found.disagreement(own) == 0.0


@torch.no_grad()
def test_transformed_samples_have_targets_of_their_own():
    found = objective("digits_net")
    kinds = ("shift", "mix")
    plain = found.lesson(torch.arange(8))
    one, two = (found.lesson(torch.arange(8), kinds, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.inputs[0], two.inputs[0])
    assert not torch.equal(one.inputs[0], plain.inputs[0])
    teacher_of = found.parents[0](*one.inputs)[-1], found.parents[1](*one.inputs)[-1]
    assert torch.equal(one.targets[-1], found.teacher.answer(list(teacher_of)))


@pytest.mark.parametrize(("count", "held"), [(1, 0), (2, 1), (5, 1), (20, 5), (21, 5)])
def test_held_out_samples_are_apart_from_the_others(count, held):
    train, judged = hold_out(count, 0.25, torch.Generator().manual_seed(0))
    assert len(judged) == held
    assert sorted([*train.tolist(), *judged.tolist()]) == list(range(count))
