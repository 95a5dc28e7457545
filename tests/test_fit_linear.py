"""Least squares: a layer is its rows times its matrix; an exact target is met; nothing gets worse."""

from dataclasses import replace

import pytest
import torch
from fits import case, first_task
from torch import nn

from fxfuse.passes.fit_linear import _matrix, _outputs, _rows, _solvable, fit_linear
from fxfuse.types import Grouping

LAYERS = [
    (nn.Linear(5, 4), (3, 5)),
    (nn.Linear(5, 4, bias=False), (3, 2, 5)),
    (nn.Conv2d(3, 4, 3, padding=1), (2, 3, 6, 5)),
    (nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), bias=False), (2, 3, 7, 6)),
    (nn.Conv2d(3, 4, (3, 4), padding="same"), (2, 3, 6, 5)),
    (nn.Conv2d(3, 4, 3, padding="valid"), (3, 6, 5)),
    (nn.Conv1d(3, 4, 3, padding=2, stride=2), (2, 3, 9)),
    (nn.Conv1d(3, 4, 4, padding="same", dilation=2), (2, 3, 9)),
    (nn.Conv1d(3, 4, 2, padding="valid"), (3, 9)),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=[str(layer) for layer, _ in LAYERS])
def test_a_layer_is_its_rows_times_its_matrix(layer, shape):
    x = torch.randn(shape)
    with torch.no_grad():
        assert torch.allclose(_rows(layer, x).double() @ _matrix(layer), _outputs(layer, layer(x)).double(), atol=1e-5)


def test_what_is_left_alone():
    assert not _solvable(nn.Conv2d(4, 4, 3, groups=2))
    assert not _solvable(nn.Conv2d(4, 4, 3, padding_mode="circular", padding=1))
    assert not _solvable(nn.BatchNorm2d(4))


def test_a_spoilt_level_is_mended():
    made = case("mlp", count=256)
    task = first_task(made)
    before = task.error()
    layer = task.piece.get_submodule(task.level.parameters[0].rpartition(".")[0])
    with torch.no_grad():
        layer.weight.add_(0.3 * torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0)))
    spoilt = task.error()
    assert fit_linear(task)
    assert task.error() < 0.5 * spoilt
    assert task.error() < 1.05 * before
    assert made.fused.get_parameter(task.level.parameters[0]) is layer.weight  # in place


def test_parents_that_agree_are_met_exactly():
    """One parent's weight is everything, so its own layer is the least-squares solution: no residual is left."""
    made = case("mlp")
    task = first_task(made)
    own = made.teacher.pairs.parents[0].program.module
    with torch.no_grad():
        for name in task.level.parameters:
            task.piece.get_parameter(name).copy_(own.get_parameter(name))
        teacher = replace(made.teacher, weights=(1.0, 0.0), groupings=only_first(made.teacher))
        task = replace(task, teacher=teacher)
        for chunk, env in ((c, c.parents) for c in task.chunks):
            values = [m(*(e[n] for n in task.level.inputs))[0] for m, e in zip(task.parents, env, strict=True)]
            chunk.target = teacher.target(task.level.boundary, values)
    assert task.error() < 1e-10
    fit_linear(task)
    assert task.error() < 1e-10


def only_first(teacher):
    spaces = teacher.pairs.reference.axes.spaces
    eyes = {s.id: torch.eye(s.size) for s in spaces}
    return {k: Grouping(k, (eye, 0 * eye), (eye, 0 * eye)) for k, eye in eyes.items()}
