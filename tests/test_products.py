"""Inner products: the same from rows as from a matrix, and pairs that are close as they are by definition."""

import pytest
import torch

from fxfuse.products import BAND, Half, Products


def rows(count: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 7, BAND, BAND + 1, 2 * BAND + 60])
def test_half_of_the_products_and_their_mirror_image_are_all(size: int) -> None:
    x = rows(9, size)
    half = Half(size)
    half.add(x[:4])
    half.add(x[4:])
    products = Products(half.average(9))
    torch.testing.assert_close(products.energies, x.square().mean(0), rtol=1e-13, atol=1e-13)
    matrix = products.matrix
    torch.testing.assert_close(matrix, x.T @ x / 9, rtol=1e-13, atol=1e-13)
    assert torch.equal(matrix, matrix.T)
    assert torch.equal(matrix.diagonal(), products.energies)


def test_rows_and_matrix_tell_the_same() -> None:
    parts = [rows(9, 30), rows(40, 30, 1)]
    whole = torch.cat(parts)
    products = Products.of(parts)
    torch.testing.assert_close(products.energies, whole.square().mean(0))
    torch.testing.assert_close(products.matrix, whole.T @ whole / 49)
    torch.testing.assert_close(products.energies, whole.square().mean(0))


@pytest.mark.parametrize("spread", [0.0, 0.3], ids=["one norm", "many norms"])
@pytest.mark.parametrize("size", [40, 700])
def test_close_pairs_are_those_of_the_definition(spread: float, size: int) -> None:
    """Copies, near copies within and beyond the bound, neurons that never fire; whatever the norms."""
    x = rows(50, size)
    x = x / x.norm(dim=0) * (1 + spread * torch.rand(size, generator=torch.Generator().manual_seed(2)))
    x[:, 5], x[:, 9], x[:, 20:23] = x[:, 3], x[:, 3] * 1.0005, 0.0
    x[:, 11] = x[:, 12] + 1e-4 * x[:, 13]
    x[:, 30] = x[:, 31] * 1.01
    energies = x.square().sum(0)
    ratio = torch.cdist(x.T, x.T).square() / (energies[:, None] + energies).clamp(min=1e-300)
    ratio[20:23, 20:23] = 0.0
    expected = {(i, j) for i, j in (ratio <= 1e-6).nonzero().tolist() if i < j}
    assert expected == {(3, 5), (3, 9), (5, 9), (11, 12), (20, 21), (20, 22), (21, 22)}
    half = Half(size)
    half.add(x)
    for products in (Products(x.T @ x / 50), Products(half.average(50)), Products.of([x[:13], x[13:]])):
        first, second, found = products.close(1e-6)
        assert set(zip(first.tolist(), second.tolist(), strict=True)) == expected
        torch.testing.assert_close(found, ratio[first, second], rtol=1e-5, atol=1e-12)
