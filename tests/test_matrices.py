"""Every form of a matrix multiplies as the matrix does."""

import gc

import pytest
import torch
from torch import Tensor

from fxfuse import matrices
from fxfuse.matrices import blocks, blocks_at, compact, dense, multiply, multiply_blocks


def groups(rows: int, columns: int) -> Tensor:
    """Each column belongs to one row, by some share."""
    generator = torch.Generator().manual_seed(rows)
    matrix = torch.zeros(rows, columns, dtype=torch.float64)
    owner = torch.cat([torch.arange(rows), torch.randint(rows, (columns - rows,), generator=generator)])
    matrix[owner, torch.arange(columns)] = torch.rand(columns, generator=generator, dtype=torch.float64)
    return matrix


MATRICES = {
    "permutation": torch.eye(7, dtype=torch.float64)[torch.randperm(7, generator=torch.Generator().manual_seed(0))],
    "selection with an empty row": torch.eye(7, dtype=torch.float64)[:4] * torch.tensor([[1.0], [0.5], [0.0], [-2.0]]),
    "groups, small": groups(5, 12),
    "groups, large": groups(500, 700),
    "dense, large": torch.rand(600, 500, dtype=torch.float64),
    "nothing": torch.zeros(3, 4, dtype=torch.float64),
}
FORMS = {"permutation": "_Picked", "groups, large": "_Summed", "dense, large": "_Dense", "groups, small": "_Dense"}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_times(name: str, transposed: bool, dim: int) -> None:
    matrix = MATRICES[name]
    acting = matrix.T if transposed else matrix
    shape = [3, 2, 4]
    shape[dim] = acting.shape[1]
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        x = torch.randn(shape, dtype=dtype)
        expected = (x.double().movedim(dim, -1) @ acting.T).movedim(-1, dim)
        for _ in range(2):  # the second time from the form that was kept
            found = multiply(matrix, x, dim, transposed=transposed)
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("name", "form"), FORMS.items())
def test_the_form_fits_the_matrix(name: str, form: str) -> None:
    found = matrices._form(MATRICES[name], torch.zeros(1))
    assert type(found).__name__ == form


def test_a_changed_matrix_is_looked_at_again() -> None:
    matrix = torch.eye(3, dtype=torch.float64)
    x = torch.arange(3.0)
    assert multiply(matrix, x, 0).tolist() == [0, 1, 2]
    matrix[0, 0], matrix[0, 2] = 0, 1
    assert multiply(matrix, x, 0).tolist() == [2, 1, 2]


def test_forms_go_with_their_matrix() -> None:
    gc.collect()
    before = len(matrices._forms)
    matrix = torch.eye(3)
    multiply(matrix, torch.ones(3), 0)
    assert len(matrices._forms) == before + 1
    del matrix
    gc.collect()
    assert len(matrices._forms) == before


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("transposed", [False, True])
def test_compact_multiplies_bit_for_bit_alike(name: str, transposed: bool) -> None:
    matrix = MATRICES[name]
    small = compact(matrix)
    assert small.is_sparse == (name == "groups, large")
    assert torch.equal(dense(small), matrix)
    x = torch.rand(2, matrix.shape[0 if transposed else 1], 3, dtype=torch.float64)
    assert torch.equal(multiply(small, x, 1, transposed=transposed), multiply(matrix, x, 1, transposed=transposed))


@pytest.mark.parametrize("large", [False, True])
def test_blocks_are_kept_by_their_pairs_and_multiply_as_the_whole_does(
    large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrices, "LARGE", 1 if large else 1 << 30)
    generator = torch.Generator().manual_seed(3)
    pairs = {(a, b): torch.randn(3, 2, generator=generator) for a, b in ((1, 4), (0, 2), (3, 0), (1, 1))}
    found = blocks(pairs, (4, 5, 3, 2))
    assert found.is_sparse == large
    whole = torch.zeros(4, 5, 3, 2, dtype=torch.float64)
    for place, matrix in pairs.items():
        whole[place] = matrix
    assert torch.equal(dense(found), whole)
    some = torch.tensor([[1, 3, 2, 0], [4, 0, 0, 1]])
    assert torch.equal(blocks_at(found.float(), *some), whole.float()[some[0], some[1]])
    outer = (whole.flatten(2).abs().sum(2) > 0) * torch.rand(4, 5, generator=generator, dtype=torch.float64)
    x = torch.randn(7, 5, 2, generator=generator, dtype=torch.float64)
    expected = torch.einsum("ab,abij,sbj->sai", outer, whole, x)
    torch.testing.assert_close(multiply_blocks(outer, [(2, found, False)], x, 1), expected)
    turned = blocks({(b, a): matrix.T for (a, b), matrix in pairs.items()}, (5, 4, 2, 3))
    torch.testing.assert_close(multiply_blocks(outer, [(2, turned, True)], x, 1), expected)


def test_blocks_of_no_pair() -> None:
    found = blocks({}, (64, 64, 8, 8))
    assert found.is_sparse
    assert not blocks_at(found, torch.tensor([3]), torch.tensor([5])).any()
