"""The group pass: laws of trees of spaces, determinism, and what it says when it cannot."""

import pytest
import torch
from solver_cases import block_statistics, blocks, generator, neurons, same_rows, shuffled, statistics

from fxfuse.errors import DataError, GraphError, MethodError
from fxfuse.passes.group import group
from fxfuse.passes.solvers import SOLVERS
from fxfuse.types import Space

MATCHING = sorted(set(SOLVERS) - {"average"})
HEADS, KEYS, VALUES = Space(0, 4, "heads"), Space(1, 5, "keys", outer=0), Space(2, 3, "values", outer=0)


def flat(outer, inner):
    """The matrices that act on the flattened (block, neuron) axis, as the record's docstring says."""
    merges, unmerges = [], []
    for mo, mi, uo, ui in zip(outer.merge, inner.merge, outer.unmerge, inner.unmerge, strict=True):
        merges.append((mo[:, :, None, None] * mi).permute(0, 2, 1, 3).flatten(2).flatten(0, 1))
        unmerges.append((uo[:, :, None, None] * ui).permute(0, 2, 1, 3).flatten(2).flatten(0, 1))
    return merges, unmerges


def widths_of(all_statistics):
    widths = {space: stats.widths for space, stats in all_statistics.items()}
    return widths | {0: next(iter(all_statistics.values())).outer_widths}


@pytest.mark.parametrize("name", MATCHING)
@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.9, 0.1), (1.0, 0.0), (0.0, 1.0)])
def test_permuted_heads_and_permuted_inside_are_undone(name, weights):
    keys, values = blocks(4, 5, 0), blocks(4, 3, 1)
    random = generator(2)
    order = torch.randperm(4, generator=random)
    copies = [torch.stack([a[h][torch.randperm(a.shape[1], generator=random)] for h in order]) for a in (keys, values)]
    cases = {1: (keys, copies[0]), 2: (values, copies[1])}
    stats = {space: block_statistics(parents, space) for space, parents in cases.items()}
    found = group([HEADS, KEYS, VALUES], stats, widths_of(stats), {0: 4, 1: 5, 2: 3}, name, {}, weights, seed=0)
    for space, parents in cases.items():
        merges, unmerges = flat(found[0], found[space])
        rows = [a.flatten(0, 1) for a in parents]
        merged = sum(m @ a for m, a in zip(merges, rows, strict=True))
        assert same_rows(merged, rows[0])
        torch.testing.assert_close(sum(m.sum(1) for m in merges), torch.ones(len(rows[0])).double())
        for unmerge, a in zip(unmerges, rows, strict=True):
            torch.testing.assert_close(unmerge @ merged, a, rtol=0, atol=1e-9)
        assert found[space].error == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", sorted(set(SOLVERS) - {"average", "kl", "rebasin"}))
@pytest.mark.parametrize("target", [(4, 5), (2, 3), (3, 7), (7, 5), (9, 16)])
def test_any_heads_any_widths(name, target):
    parents = [blocks(4, 5, 0), blocks(3, 4, 1)]
    stats = {1: block_statistics(parents)}
    space = [HEADS, KEYS]
    found = group(space, stats, widths_of(stats), {0: target[0], 1: target[1]}, name, {}, (0.6, 0.4), seed=0)
    assert found[1].merge[0].shape == (target[0], 4, target[1], 5)
    assert found[1].unmerge[1].shape == (3, target[0], 4, target[1])
    merges, unmerges = flat(found[0], found[1])
    torch.testing.assert_close(sum(m.sum(1) for m in merges), torch.ones(target[0] * target[1]).double())
    for unmerge in unmerges:
        sums = unmerge.sum(1)
        assert bool(((sums - 1).abs() < 1e-9).logical_or(sums == 0).all())
    if target == (9, 16) and name != "ot":  # room for every block and every neuron
        merged = sum(m @ a.flatten(0, 1) for m, a in zip(merges, parents, strict=True))
        for unmerge, a in zip(unmerges, parents, strict=True):
            torch.testing.assert_close(unmerge @ merged, a.flatten(0, 1), rtol=0, atol=1e-9)


def test_average_keeps_blocks_and_their_inside():
    parents = [blocks(4, 5, 0), blocks(4, 5, 1)]
    stats = {1: block_statistics(parents)}
    found = group([HEADS, KEYS], stats, widths_of(stats), {0: 4, 1: 5}, "average", {}, (0.7, 0.3), seed=0)
    merges, unmerges = flat(found[0], found[1])
    eye = torch.eye(20, dtype=torch.float64)
    torch.testing.assert_close(merges[0], 0.7 * eye)
    torch.testing.assert_close(merges[1], 0.3 * eye)
    assert all(torch.equal(unmerge, eye) for unmerge in unmerges)


def test_a_reference_parent_means_its_blocks_inside():
    a = blocks(4, 5, 0)
    other, order = shuffled(a, 3)
    stats = {1: block_statistics([a, other])}
    found = group([HEADS, KEYS], stats, widths_of(stats), {0: 4, 1: 5}, "ot", {"reference": 1}, (0.5, 0.5), seed=0)
    assert torch.equal(found[0].unmerge[1], torch.eye(4, dtype=torch.float64))
    assert found[0].unmerge[0].argmax(1)[order].tolist() == [0, 1, 2, 3]
    merges, _ = flat(found[0], found[1])
    torch.testing.assert_close(merges[1], 0.5 * torch.eye(20, dtype=torch.float64))


def test_an_outer_space_with_statistics_of_its_own_only():
    a = neurons(4, 0)
    order = torch.randperm(4, generator=generator(1))
    stats = {0: statistics([a, a[order]], (0.5, 0.5))}
    found = group([HEADS, KEYS], stats, {0: (4, 4), 1: (5, 5)}, {0: 4, 1: 5}, "hungarian", {}, (0.5, 0.5), seed=0)
    assert torch.equal(found[0].unmerge[1].argmax(1), order)
    merges, unmerges = flat(found[0], found[1])  # nothing is known of the inside: it keeps its order
    torch.testing.assert_close(unmerges[1], torch.kron(found[0].unmerge[1], torch.eye(5).double()))
    torch.testing.assert_close(merges[1], torch.kron(found[0].merge[1], torch.eye(5).double()))
    assert found[1].error is None


def test_a_space_that_nobody_observed_keeps_its_order():
    space = Space(7, 3, "stem")
    found = group([space], {}, {7: (3, 3)}, {7: 3}, "kmeans", {}, (1.0, 3.0), seed=0)[7]
    torch.testing.assert_close(found.merge[1], 0.75 * torch.eye(3).double())
    assert torch.equal(found.unmerge[1], torch.eye(3).double())
    with pytest.raises(MethodError, match=r"'stem' is observed on no value.*parents \[3, 4\], target 3"):
        group([space], {}, {7: (3, 4)}, {7: 3}, "kmeans", {}, (0.5, 0.5), seed=0)


@pytest.mark.parametrize("name", ["kmeans", "rebasin"])
def test_a_seed_gives_the_same_bits_and_spaces_do_not_depend_on_each_other(name):
    spaces = [Space(k, 12, f"s{k}") for k in range(3)]
    stats = {k: statistics([neurons(12, 3 * k + p) for p in range(3)], (0.5, 0.3, 0.2)) for k in range(3)}
    widths, targets = dict.fromkeys(range(3), (12, 12, 12)), dict.fromkeys(range(3), 12)
    whole = group(spaces, stats, widths, targets, name, {}, (0.5, 0.3, 0.2), seed=5)
    for chosen in (spaces[::-1], spaces[2:]):
        again = group(chosen, stats, widths, targets, name, {}, (0.5, 0.3, 0.2), seed=5)
        for space in chosen:
            pairs = zip(whole[space.id].merge, again[space.id].merge, strict=True)
            assert all(torch.equal(first, second) for first, second in pairs)


def test_bad_input_is_named():
    space = Space(0, 4, "layer1")
    stats = {0: statistics([neurons(4, 0), neurons(5, 1)], (0.5, 0.5))}

    def run(spaces=(space,), statistics=stats, solver="kmeans", options=None, weights=(0.5, 0.5), widths=(4, 5)):
        return group(spaces, statistics, {0: widths, 1: (2, 2), 2: (2, 2)}, {0: 4, 1: 2, 2: 2}, solver,
                     options or {}, weights, seed=0)  # fmt: skip

    with pytest.raises(MethodError, match="did you mean 'kmeans'"):
        run(solver="kmean")
    with pytest.raises(MethodError, match="no option 'restart'"):
        run(options={"restart": 1})
    with pytest.raises(MethodError, match="parent weights must be finite"):
        run(weights=(float("nan"), 1.0))
    with pytest.raises(MethodError, match=r"space 'layer1': averaging pairs neurons by index"):
        run(solver="average")
    with pytest.raises(GraphError, match="statistics of space 'layer1' have widths"):
        run(widths=(4, 4))
    nested = (space, Space(1, 2, "inside", outer=0), Space(2, 2, "deeper", outer=1))
    with pytest.raises(GraphError, match="'deeper' must lie inside an outermost space"):
        run(spaces=nested)
    stats[0].gram[1, 1] = float("inf")
    with pytest.raises(DataError, match="activations of space 'layer1' must be finite"):
        run()
