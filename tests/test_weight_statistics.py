"""Slices and Gram matrices of weights, against what they are defined as."""

import pytest
import torch
from laws import analysed, with_permuted_copy
from torch import Tensor

from fxfuse.layouts import permutation_groupings
from fxfuse.passes.correspond import correspond
from fxfuse.passes.weight_statistics import (
    frames_of,
    in_common_frame,
    objective,
    parameter_scales,
    parameters,
    slices,
    weight_statistics,
)
from fxfuse.types import Grouping, Leaf, Space, TensorAxes


def orders(sizes: tuple[int, ...], seed: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.eye(n, dtype=torch.float64)[torch.randperm(n, generator=random)] for n in sizes]


def test_one_layer_in_the_frame_of_the_one_before():
    """``W U``: OTFusion's incoming weights through the previous map."""
    space, other = Space(0, 5, "out"), Space(1, 4, "in")
    (order,) = orders((4,), 0)
    grouping = Grouping(1, (order,), (order.T.contiguous(),))
    frames = frames_of({1: grouping}, (space, other), 0)
    x = torch.randn(5, 4, dtype=torch.float64)
    axes = TensorAxes((Leaf(5, 0), Leaf(4, 1)), frozenset({(1, 1)}))
    ((written, found),) = slices(x, axes, space, frames)
    assert written
    torch.testing.assert_close(found, (x @ order.T).T)
    ((written, found),) = slices(x, axes, other, frames_of({}, (space, other), 0), foreign="sort")
    assert not written
    torch.testing.assert_close(found, x.sort(0).values)
    assert list(slices(x, axes, other, frames_of({}, (space, other), 0))) == []
    assert list(slices(x, axes, other, frames, part="written")) == []


def test_a_soft_frame_is_a_mean_where_written_and_a_sum_where_read():
    space, other = Space(0, 2, "a"), Space(1, 3, "b")
    merge = torch.tensor([[0.25, 0.25, 0.0], [0.0, 0.0, 0.5]], dtype=torch.float64)
    unmerge = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    frames = frames_of({1: Grouping(1, (merge,), (unmerge,))}, (space, other), 0)
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=torch.float64)
    (written,) = in_common_frame(x, TensorAxes((Leaf(3, 1), Leaf(2, None))), frames)
    torch.testing.assert_close(written, torch.tensor([[2.0, 3.0], [5.0, 6.0]], dtype=torch.float64))
    (read,) = in_common_frame(x, TensorAxes((Leaf(3, 1), Leaf(2, None)), frozenset({(0, 1)})), frames)
    torch.testing.assert_close(read, torch.tensor([[4.0, 6.0], [5.0, 6.0]], dtype=torch.float64))


def test_the_gram_matrix_of_an_mlps_first_layer():
    pairs = correspond(analysed("mlp"), [analysed("mlp"), analysed("mlp", seed=1)])
    space, scales = pairs.reference.axes.spaces[0], parameter_scales(pairs)
    stats = weight_statistics(pairs, space, {}, (0.5, 0.5), scales, part="written")
    assert stats is not None
    rows = []
    for parent in pairs.parents:
        state = parent.program.module.state_dict()
        rows.append(torch.cat([state["1.weight"] * scales["1.weight"], state["1.bias"][:, None] * scales["1.bias"]], 1))
    x = torch.cat(rows).double()
    assert stats.rows == x.shape[1]
    torch.testing.assert_close(stats.gram, x @ x.T / x.shape[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stats.mean, x.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stats.importance, torch.full((len(x),), 1 / len(x), dtype=torch.float64))


def test_norms_are_compared_over_all_parents():
    pairs = correspond(analysed("mlp"), [analysed("mlp"), analysed("mlp", seed=1)])
    with torch.no_grad():
        for parameter in pairs.parents[1].program.module.parameters():
            parameter.mul_(3)
    space, scales = pairs.reference.axes.spaces[0], parameter_scales(pairs)
    for importance in ("magnitude", "norm-product"):
        stats = weight_statistics(pairs, space, {}, (0.5, 0.5), scales, foreign="sort", importance=importance)
        assert stats is not None
        first, second = stats.importance.split(list(stats.widths))
        assert float(second.sum() / first.sum()) == pytest.approx(9, rel=0.5)
        assert float(stats.importance.sum()) == pytest.approx(1)


@pytest.mark.parametrize("name", ["mlp", "digits_net", "vit", "packed_qkv", "resnet18", "lstm"])
def test_a_permuted_copy_is_the_parent_in_the_common_frame(name):
    first = analysed(name)
    groupings = permutation_groupings(first.axes.spaces, torch.Generator().manual_seed(1))
    pairs = with_permuted_copy(name, seed=1)
    eye = permutation_groupings(first.axes.spaces, torch.Generator().manual_seed(1))
    scales = parameter_scales(pairs)
    both = {}
    for number, grouping in groupings.items():
        back, there = grouping.unmerge[0], grouping.merge[0]
        same = torch.linalg.matrix_power(eye[number].merge[0], 0) if there.ndim == 2 else None
        if same is None:  # blocks: the fused order is the copy's
            own = torch.zeros_like(there)
            own[:] = torch.eye(there.shape[-1], dtype=there.dtype)
            both[number] = Grouping(number, (there / 2, own / 2), (back, own.permute(1, 0, 3, 2)))
        else:
            both[number] = Grouping(number, (there / 2, same / 2), (back, same))
    found = objective(pairs, both, (0.5, 0.5), scales)
    whole = sum(float(x.double().square().sum()) for _, x, _ in parameters(pairs, 0, scales))
    assert found == pytest.approx(whole / 4, rel=1e-5)
