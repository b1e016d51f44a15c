"""Small decompositions hold where LAPACK's fastest road gives up."""

from typing import Any

import numpy as np
import pytest
import torch

from detjac_lanczos.solvers.basis import small_svd, thin_svd


def _give_up(*args: Any, **options: Any) -> Any:
    raise np.linalg.LinAlgError("SVD did not converge")


@pytest.mark.parametrize("shape", [(7, 5), (5, 7)])
@pytest.mark.parametrize("full", [False, True])
def test_where_divide_and_conquer_gives_up(shape: tuple[int, int], full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = np.random.default_rng(0).standard_normal(shape)
    plain = small_svd(matrix, full=full)
    monkeypatch.setattr(np.linalg, "svd", _give_up)
    left, values, right = small_svd(matrix, full=full)
    assert left.shape == plain[0].shape and right.shape == plain[2].shape
    np.testing.assert_allclose((left[:, :5] * values) @ right[:5], matrix, atol=1e-14)
    np.testing.assert_allclose(values, plain[1], rtol=1e-14)


def test_where_torch_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))

    def give_up(*args: Any, **options: Any) -> Any:
        raise torch.linalg.LinAlgError("linalg.svd: the algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "svd", give_up)
    left, values, right = thin_svd(matrix)
    assert values.dtype == matrix.dtype
    torch.testing.assert_close((left * values) @ right, matrix)
