"""The kernel between blocks: invariant to their inside's order, a distance, and zero between copies."""

import pytest
import torch
from solver_cases import block_statistics, blocks, generator, shuffled

from fxfuse.errors import GraphError
from fxfuse.passes.solvers.blocks import as_blocks, block_kernel, block_slices, member_statistics, outer_statistics
from fxfuse.products import Products
from fxfuse.types import SpaceStatistics


def distances(kernel):
    return kernel.diagonal()[:, None] + kernel.diagonal()[None, :] - 2 * kernel


def test_slices_lie_block_after_block():
    stats = block_statistics([blocks(2, 3, 0), blocks(1, 4, 1)])
    assert block_slices(stats) == [[slice(0, 3), slice(3, 6)], [slice(6, 10)]]


@pytest.mark.parametrize("widths", [(4, 4), (4, 3)])
def test_the_kernel_ignores_inner_order_and_gives_distances(widths):
    first, second = blocks(3, widths[0], 0), blocks(2, widths[1], 1)
    kernel = block_kernel(block_statistics([first, second]))
    inner = torch.stack([a[torch.randperm(widths[0], generator=generator(5))] for a in first])
    torch.testing.assert_close(block_kernel(block_statistics([inner, second])), kernel, rtol=1e-12, atol=1e-12)
    assert torch.equal(kernel, kernel.T)
    assert float(distances(kernel).min()) >= -1e-12


def test_copies_lie_at_distance_zero_and_others_do_not():
    a = blocks(4, 3, 0)
    other, order = shuffled(a, 1)
    stats = outer_statistics(0, [block_statistics([a, other])])
    distance = distances(stats.gram)[:4, 4:]
    assert float(torch.linalg.eigvalsh(stats.gram)[0]) > -1e-12
    for h, origin in enumerate(order.tolist()):
        assert float(distance[origin, h]) == pytest.approx(0, abs=1e-12)
    assert int((distance < 1e-6).sum()) == 4


def test_inner_spaces_count_the_same_whatever_their_scale():
    keys, values = block_statistics([blocks(3, 4, 0)]), block_statistics([blocks(3, 2, 1)], 2)
    loud = block_statistics([100 * blocks(3, 2, 1)], 2)
    own = SpaceStatistics(
        0, (3,), (1,), 60, torch.zeros(3), Products(torch.eye(3).double()), torch.ones(3).double() / 3
    )
    first = outer_statistics(0, [keys, values, as_blocks(own)])
    second = outer_statistics(0, [keys, loud, as_blocks(own)])
    torch.testing.assert_close(first.gram, second.gram)
    assert first.widths == (3,)
    assert float(first.gram.diagonal().mean()) == pytest.approx(3)
    torch.testing.assert_close(first.importance, torch.full((3,), 1 / 3, dtype=torch.float64))
    with pytest.raises(GraphError, match="disagree"):
        outer_statistics(0, [keys, block_statistics([blocks(2, 4, 0)])])


def test_members_are_parents_with_the_given_weights():
    stats = block_statistics([blocks(2, 3, 0), blocks(2, 3, 1)])
    stats.importance[3:6] = 0.0
    part = member_statistics(stats, [(0, 1), (1, 0)], [0.25, 0.75])
    index = torch.tensor([3, 4, 5, 6, 7, 8])
    assert torch.equal(part.gram, stats.gram[index][:, index])
    assert part.widths == (3, 3)
    torch.testing.assert_close(part.importance.view(2, 3).sum(1), torch.tensor([0.25, 0.75]).double())
