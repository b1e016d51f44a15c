"""The leave-one-out estimate against samples really left out, and against true errors over seeds."""

import numpy as np
import pytest
import torch

from detjac_lanczos.solvers import svd
from detjac_lanczos.solvers.basis import orthonormal_factor
from detjac_lanczos.solvers.leave_one_out import LeaveOneOut
from tests.solvers.spectra import Recorder, matrix, spectrum

SAMPLES = 7


def estimated(A: np.ndarray, draws: np.ndarray, powers: int) -> float:
    """Err², by the class, from the same chain of orthonormalisations that the method makes."""
    B = torch.from_numpy(A)
    factor, left = orthonormal_factor(torch.from_numpy(draws))
    estimate = LeaveOneOut(factor, left @ B)
    for power in range(powers + 1):
        factor, right = orthonormal_factor(left @ B)
        estimate.follow(factor)
        if power < powers:
            factor, left = orthonormal_factor(right @ B.T)
            estimate.follow(factor)
    return estimate.squared(right)


def squared_error(A: np.ndarray, draws: np.ndarray, powers: int) -> np.ndarray:
    """What the basis of these samples leaves of A, (d_out, d_in): plain numpy, by SVDs."""
    basis = draws @ A
    for _ in range(powers):
        basis = np.linalg.svd(np.linalg.svd(basis, full_matrices=False)[2] @ A.T, full_matrices=False)[2] @ A
    basis = np.linalg.svd(basis, full_matrices=False)[2]
    return A - A @ basis.T @ basis


@pytest.mark.parametrize("powers", [0, 1, 4, 12])
@pytest.mark.parametrize("name", ["root", "geometric", "staircase"])
def test_it_is_what_leaving_samples_out_gives(name: str, powers: int) -> None:
    A = matrix(spectrum(name, 20), (30, 20), seed=4).numpy()
    draws = np.random.default_rng(1).standard_normal((SAMPLES, 30))
    left_out = [np.square(draws[i] @ squared_error(A, np.delete(draws, i, 0), powers)).sum() for i in range(SAMPLES)]
    assert estimated(A, draws, powers) == pytest.approx(np.mean(left_out), rel=1e-6)


@pytest.mark.parametrize("powers", [0, 2])
def test_it_is_unbiased(powers: int) -> None:
    A = matrix(spectrum("root", 20), (30, 20)).numpy()
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((150, SAMPLES, 30))
    guesses = [estimated(A, one, powers) for one in draws]
    errors = [np.square(squared_error(A, one, powers)).sum() for one in rng.standard_normal((150, SAMPLES - 1, 30))]
    spread = np.sqrt((np.var(guesses) + np.var(errors)) / 150)
    assert abs(np.mean(guesses) - np.mean(errors)) < 4 * spread
    assert spread < 0.05 * np.mean(errors)


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
def test_the_method_prints_it_at_no_product(scale: float) -> None:
    A = matrix(spectrum("root", 60), (80, 60))
    operator = Recorder(A * scale)
    result = svd(operator, 4, tol=1e-2, method="randomized")
    assert result.error is not None
    true = float((A - (result.U * (result.S / scale)) @ result.V.T).norm())
    assert result.error / scale == pytest.approx(true, rel=0.1)
    assert sum(operator.forward) + sum(operator.transposed) == result.work.products == 12 * result.work.passes
    assert "(estimate)" in repr(result)
    assert "no claim" in result.advice


def test_nothing_is_left_of_a_low_rank_or_a_zero() -> None:
    for rank in (0, 3):
        values = np.r_[np.linspace(2, 1, rank), np.zeros(40 - rank)]
        error = svd(matrix(values, (40, 40)), 4, method="randomized").error
        assert error is not None and error <= 1e-13


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (7, 1), (5, 5)])
def test_a_basis_of_the_whole_space_leaves_nothing(shape: tuple[int, int]) -> None:
    A = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    result = svd(A, k=1, method="randomized")
    truth = float((A - result.U * result.S @ result.V.T).norm())
    assert result.error is not None
    assert abs(result.error - truth) <= 1e-12 * float(A.norm())
