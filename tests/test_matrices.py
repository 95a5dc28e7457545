"""Every form of a matrix multiplies as the matrix does."""

import gc

import pytest
import torch
from torch import Tensor

from fxfuse import matrices
from fxfuse.matrices import compact, dense, multiply


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
