"""An operator that breaks its contract, or a budget that ends: the status says so, and never `converged`."""

import pytest
import torch

from detjac_lanczos.errors import OperatorError
from detjac_lanczos.solvers import Status, svd, svd_batch
from tests.solvers.spectra import Recorder, matrix, spectrum

A = matrix(spectrum("root", 50), (50, 50))
METHODS = ["lanczos", "randomized"]


class After(Recorder):
    """Spoils products from the fourth call on."""

    def __init__(self, matrix: torch.Tensor, value: float) -> None:
        super().__init__(matrix)
        self.value = value

    def spoil(self, product):
        if len(self.forward) + len(self.transposed) >= 4:
            product = product.clone()
            product[0, 0] = self.value
        return product


class Jittering(Recorder):
    """Another matrix at every call, 1 % around the first."""

    def spoil(self, product):
        return product * (1 + 0.01 * torch.rand(()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", [*METHODS, "dense"])
def test_not_finite(method: str, value: float) -> None:
    operator = After(A, value)
    operator.forward = [0] * (3 if method == "dense" else 0)
    result = svd(operator, 4, method=method)
    assert result.status is Status.NOT_FINITE
    assert "operator 0" in result.advice
    assert not result.converged


def test_one_operator_that_is_not_finite_leaves_the_others_alone() -> None:
    results = svd_batch([A, After(A, float("nan")), A], 4, method="lanczos")
    assert [result.status for result in results] == [Status.CONVERGED, Status.NOT_FINITE, Status.CONVERGED]
    assert torch.equal(results[0].S, svd(A, 4, method="lanczos").S)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "wrong",
    [A, -A.T, 1.0001 * A.T, A.T + 1e-3 * torch.eye(50, dtype=A.dtype), torch.roll(A.T, 1, 0)],
    ids=["untransposed", "negated", "scaled", "shifted", "rolled"],
)
def test_not_adjoint(method: str, wrong: torch.Tensor) -> None:
    result = svd(Recorder(A, wrong), 4, method=method)
    assert result.status is Status.NOT_ADJOINT
    assert result.certificate is None
    assert bool(result.S.isnan().all())
    assert "check_operator" in result.advice


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sound_operator_in_low_precision_is_adjoint(dtype: torch.dtype) -> None:
    for seed in range(10):
        result = svd(matrix(spectrum("geometric", 200), (200, 200), seed).to(dtype), 4, method="lanczos", seed=seed)
        assert result.status in (Status.CONVERGED, Status.NOISE_FLOOR)


def test_not_deterministic() -> None:
    assert svd(Jittering(A), 4, method="lanczos").status is Status.NOT_DETERMINISTIC


@pytest.mark.parametrize("method", METHODS)
def test_budget(method: str) -> None:
    operator = Recorder(A)
    result = svd(operator, 4, tol=1e-10, method=method, max_products=30)
    assert result.status is Status.BUDGET
    assert sum(operator.forward) + sum(operator.transposed) <= 30
    assert "max_products" in result.advice
    assert result.certificate is not None
    assert result.certificate.claimed < 4
    assert result.certificate.claimed == int((result.relative.amax(dim=1) <= 1e-10).sum())


@pytest.mark.parametrize("block", [2, 3, 5])
def test_the_smallest_budget_holds_k_triplets(block: int) -> None:
    result = svd(A, 8, tol=1e-10, method="lanczos", block=block, max_products=16)
    assert result.status is Status.BUDGET
    assert bool(result.S.isfinite().all())
    assert result.work.products == 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noise_floor(dtype: torch.dtype) -> None:
    """A tolerance that the operator's precision cannot carry ends at the floor, with the level reached."""
    lowered = matrix(spectrum("spike", 150), (150, 150)).to(dtype)
    result = svd(lowered, 8, tol=1e-9, method="lanczos")
    assert result.status is Status.NOISE_FLOOR
    assert float(result.residuals.max()) <= result.floor
    assert result.certificate is not None
    assert result.certificate.claimed < 8
    assert "higher precision" in result.advice


def test_products_of_the_wrong_shape_or_type_raise() -> None:
    class Short(Recorder):
        def spoil(self, product):
            return product[:-1]

    class Whole(Recorder):
        def spoil(self, product):
            return product.int()

    with pytest.raises(OperatorError, match=r"operator 0, transposed pass 1: .* \(49, 3\) instead of \(50, 3\)"):
        svd(Short(A), 4, method="lanczos")
    with pytest.raises(OperatorError, match="int32"):
        svd(Whole(A), 4, method="lanczos")


@pytest.mark.parametrize("wrong", [A, torch.roll(A.T, 1, 0), 1.01 * A.T], ids=["untransposed", "rolled", "scaled"])
def test_the_dense_road_sees_a_wrong_adjoint_too(wrong: torch.Tensor) -> None:
    assert svd(Recorder(A, wrong), 4, method="dense").status is Status.NOT_ADJOINT
