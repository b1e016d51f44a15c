"""Residuals mean the same everywhere: in a callback, in a result, in a certificate."""

import math

import numpy as np
import pytest
import torch

from detjac_lanczos.solvers import Progress, Status, svd, svd_batch
from detjac_lanczos.solvers.residuals import are_zeros, relative_residuals
from tests.solvers.spectra import matrix, spectrum


def test_values_under_the_floor_are_held_against_the_first() -> None:
    residuals, values = (torch.tensor(numbers, dtype=torch.float64) for numbers in ([0.1, 0.2, 0.3], [4.0, 2.0, 0.5]))
    assert relative_residuals(residuals, values, 1.0, 4.0).tolist() == [0.1 / 4, 0.2 / 2, 0.3 / 4]
    both = torch.stack([residuals, residuals], dim=1)
    assert relative_residuals(both, values, 1.0, 4.0)[:, 1].tolist() == [0.1 / 4, 0.2 / 2, 0.3 / 4]
    assert relative_residuals(residuals[:1], torch.zeros(1), 0.0, 0.0).tolist() == [0.1]


def test_zeros_are_told_where_the_floor_tells_them() -> None:
    values, residuals = np.array([4.0, 1e-9, 1e-9]), np.array([1e-9, 1e-9, 1.0])
    assert are_zeros(values, residuals, 1e-6, 1e-3, 4.0).tolist() == [False, True, False]
    assert not are_zeros(values, residuals, 1e-6, 1e-8, 4.0).any()


@pytest.mark.parametrize("method", ["lanczos", "randomized"])
def test_a_callback_sees_the_residuals_of_the_result(method: str) -> None:
    """Of the first operator, which ends at once, also for its values of zero: not by their rounding."""
    seen: list[Progress] = []
    low = matrix(np.r_[3.0, 2.0, 1.0, np.zeros(57)], (60, 60))
    results = svd_batch([low, matrix(spectrum("root", 60), (60, 60))], 5, method=method, callback=seen.append)
    assert results[0].S[3] <= results[0].floor
    np.testing.assert_allclose(seen[-2].residuals[0], results[0].relative.amax(dim=1), rtol=0, atol=1e-14)


def test_where_nothing_was_found_nothing_is_known_of_residuals() -> None:
    result = svd(torch.full((6, 6), math.nan, dtype=torch.float64), 2, method="lanczos")
    assert result.status is Status.NOT_FINITE
    assert bool(result.relative.isnan().all())
