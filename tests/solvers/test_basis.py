"""Small decompositions hold where LAPACK's fastest road gives up."""

from typing import Any

import numpy as np
import pytest
import torch

from detjac_lanczos.solvers.basis import (
    clean_zeros,
    complete_block,
    orthonormal_factor,
    small_svd,
    svd_with_clean_zeros,
    thin_svd,
)


def _give_up(*args: Any, **options: Any) -> Any:
    raise torch.linalg.LinAlgError("linalg.svd: the algorithm failed to converge")


@pytest.mark.parametrize("shape", [(7, 5), (5, 7)])
@pytest.mark.parametrize("full", [False, True])
def test_where_divide_and_conquer_gives_up(shape: tuple[int, int], full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = np.random.default_rng(0).standard_normal(shape)
    plain = small_svd(matrix, full=full)
    monkeypatch.setattr(torch.linalg, "svd", _give_up)
    left, values, right = small_svd(matrix, full=full)
    assert left.shape == plain[0].shape and right.shape == plain[2].shape
    np.testing.assert_allclose((left[:, :5] * values) @ right[:5], matrix, atol=1e-14)
    np.testing.assert_allclose(values, plain[1], rtol=1e-14)


def test_memory_running_out_is_no_reason_for_another_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*args: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch.linalg, "svd", run_out)
    with pytest.raises(torch.OutOfMemoryError):
        thin_svd(torch.ones(3, 2))


def test_vectors_of_zeros_hold_nothing_of_the_leading_ones() -> None:
    random, largest = np.random.default_rng(0), {small_svd: 0.0, svd_with_clean_zeros: 0.0}
    for _ in range(300):
        rows, columns = random.integers(3, 40, 2)
        thin = (np.linalg.qr(random.standard_normal((size, 2)))[0] for size in (rows, columns))
        matrix = np.hstack([next(thin) * [1.0, 0.9] @ next(thin).T, 1e-17 * random.standard_normal((rows, 4))])
        for road in largest:
            left, values, right = road(matrix)
            size = len(values)
            np.testing.assert_allclose(left.T @ left, np.eye(size), atol=1e-14)
            np.testing.assert_allclose(right @ right.T, np.eye(size), atol=1e-14)
            np.testing.assert_allclose((left * values) @ right, matrix, atol=2e-14)
            left_over = max(np.linalg.norm(matrix @ right[2:].T, axis=0).max(), np.linalg.norm(left[:, 2:].T @ matrix))
            largest[road] = max(largest[road], left_over)
    assert largest[svd_with_clean_zeros] <= 2e-15 < largest[small_svd]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "columns"), [(40, 90), (90, 40)])
def test_zeros_are_cleaned_of_the_leading_triplets_in_their_own_precision(
    dtype: torch.dtype, rows: int, columns: int
) -> None:
    eps, generator = torch.finfo(dtype).eps, torch.Generator().manual_seed(0)
    (left, right) = (
        torch.linalg.qr(torch.randn(size, 40, generator=generator, dtype=torch.float64)).Q for size in (rows, columns)
    )
    values = torch.tensor([3, 3, 1, 1e-2, 40 * eps, 20 * eps] + 34 * [0.0], dtype=torch.float64)
    matrix = ((left * values) @ right.T).to(dtype)
    u, found, vh = thin_svd(matrix)
    leak = 1e3 * eps * torch.randn(30, generator=generator, dtype=torch.float64).to(dtype)
    u[:, 10:] += u[:, :1] * leak
    vh[10:] -= leak[:, None] * vh[1:2]
    found[10:] = 30 * eps
    u, found, vh = clean_zeros(matrix, u, found, vh)
    assert (found[:-1] >= found[1:]).all() and (found >= 0.0).all()
    torch.testing.assert_close(found.double(), values, rtol=0, atol=20 * eps)
    torch.testing.assert_close(found[4:6].double(), values[4:6], rtol=0.2, atol=0)
    torch.testing.assert_close(u.T @ u, torch.eye(40, dtype=dtype), rtol=0, atol=50 * eps)
    torch.testing.assert_close(vh @ vh.T, torch.eye(40, dtype=dtype), rtol=0, atol=50 * eps)
    u, found, vh, exact = u.double(), found.double(), vh.double(), matrix.double()
    assert max((exact @ vh.T - u * found).norm(dim=0).max(), (u.T @ exact - found[:, None] * vh).norm(dim=1).max()) < (
        20 * eps
    )


def test_where_torch_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr(torch.linalg, "svd", _give_up)
    left, values, right = thin_svd(matrix)
    assert values.dtype == matrix.dtype
    torch.testing.assert_close((left * values) @ right, matrix)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orthonormal_rows_come_back_as_they_are(dtype: torch.dtype) -> None:
    """Also through a block made orthonormal to a basis, and above the random rows that fill it."""
    generator = torch.Generator().manual_seed(0)
    eps = torch.finfo(dtype).eps
    for size in range(1, 9):
        rows = torch.linalg.qr(torch.randn(30, 12, generator=generator, dtype=torch.float64)).Q.T.to(dtype)
        basis, block = rows[:4], rows[4 : 4 + size]
        for returned in (
            orthonormal_factor(block)[1],
            complete_block(block, basis, size, generator),
            complete_block(block, basis, size + 3, generator)[:size],
        ):
            torch.testing.assert_close(returned, block, rtol=0, atol=20 * eps)


def test_rows_are_the_factor_times_orthonormal_ones() -> None:
    rows = torch.randn(6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factor, orthonormal = orthonormal_factor(rows)
    torch.testing.assert_close(factor @ orthonormal, rows, rtol=0, atol=1e-14)
    torch.testing.assert_close(orthonormal @ orthonormal.T, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-14)
    # L Lᵀ = A Aᵀ has one such factor: that of Cholesky.
    torch.testing.assert_close(factor, torch.linalg.cholesky(rows @ rows.T), rtol=0, atol=1e-13)
