"""The gradient fit lowers the held-out error, keeps the best state, and trains its own level alone."""

import torch
from fits import case, first_task

from fxfuse.passes.fit_gradient import fit_gradient


def test_it_lowers_the_held_out_error_in_place():
    made = case()
    task = first_task(made)
    before = task.error()
    others = {k: v.clone() for k, v in made.fused.state_dict().items() if k not in task.level.parameters}
    assert fit_gradient(task, 40, 1e-2, None, 0)
    assert task.error() < before
    assert all(torch.equal(made.fused.state_dict()[k], v) for k, v in others.items())


def test_it_never_ends_worse_than_it_began():
    task = first_task(case())
    before = task.error()
    fit_gradient(task, 10, 10.0, None, 0)  # a step size that destroys everything
    assert task.error() <= before


def test_the_same_seed_gives_the_same_bits():
    states = []
    for _ in range(2):
        made = case()
        fit_gradient(first_task(made), 10, 1e-2, None, 3)
        states.append(made.fused.state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_nothing_to_do():
    made = case()
    task = first_task(made)
    assert not fit_gradient(task, 0, 1e-2, None, 0)
    for parameter in task.piece.parameters():
        parameter.requires_grad_(False)
    assert not fit_gradient(task, 10, 1e-2, None, 0)


def test_a_time_limit_ends_it():
    made = case()
    task = first_task(made)
    before = task.error()
    assert fit_gradient(task, 10_000, 1e-2, 0.0, 0)
    assert task.error() <= before
