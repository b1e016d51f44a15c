"""The dense method claims what products of the operator bear out, and makes those only where its matrix does not do."""

import numpy as np
import pytest
import torch

from detjac_lanczos.solvers import Status, dense, measure_triplets, svd, svd_batch
from detjac_lanczos.solvers.reprobe import measure_completeness
from tests.solvers.spectra import Recorder, matrix, spectrum

A = matrix(spectrum("harmonic", 60), (60, 60))


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float16, 1e-5), (torch.bfloat16, 1e-5), (torch.bfloat16, 1e-2)])
def test_in_half_precision_real_products_measure_the_triplets(dtype: torch.dtype, tol: float) -> None:
    operator = Recorder(A.to(dtype))
    result = svd(operator, 5, tol=tol, method="dense", certify="complete")
    assert sum(operator.forward) + sum(operator.transposed) == result.work.products == 60 + 1 + 2 * 5
    measured = measure_triplets(Recorder(A.to(dtype)), result.U, result.S, result.V, tol=tol)[0]
    torch.testing.assert_close(result.residuals, measured.residuals)
    assert result.certificate.claimed == measured.certificate.claimed
    assert result.certificate.radius == pytest.approx(measured.certificate.radius)
    assert (result.status is Status.CONVERGED) == (result.certificate.claimed == 5)
    assert result.certificate.claimed == 0 or tol == 1e-2


def test_a_forward_product_that_is_off_claims_no_more_than_it_bears_out() -> None:
    """By 8 %, less than what is called a wrong transpose in float16."""
    noise = torch.randn(60, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wrong = A + 0.08 * noise * A.norm() / noise.norm()
    result = svd(Recorder(wrong.half(), A.T.half()), 5, tol=1e-3, method="dense", certify="complete")
    assert (result.status, result.certificate.claimed) == (Status.NOISE_FLOOR, 0)
    claim = result.certificate.completeness
    assert not claim.complete
    for off in (A, wrong):
        assert (torch.linalg.svdvals(off)[:6] <= torch.tensor(claim.upper)).all()
    triplets = [result.U], [result.S], [result.V]
    operator = Recorder(wrong.half(), A.T.half())
    again = measure_completeness(operator, *triplets, [claim], tol=1e-3, passes=result.work.passes)[0]
    assert again.upper == pytest.approx(claim.upper)


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-3), (torch.float64, 1e-3), (torch.float64, 1e-10)])
@pytest.mark.parametrize("name", ["geometric", "harmonic", "root", "spike", "flat", "multiple"])
def test_a_sound_matrix_stands_for_its_products(dtype: torch.dtype, tol: float, name: str) -> None:
    operator = Recorder(matrix(spectrum(name, 60), (60, 60)).to(dtype))
    result = svd(operator, 8, tol=tol, method="dense")
    assert (result.status, result.work.products) == (Status.CONVERGED, 62)
    measured = measure_triplets(operator, result.U, result.S, result.V, tol=tol)[0]
    assert ((result.residuals - measured.residuals).abs() <= result.floor).all()


def test_small_values_of_a_sound_operator_take_no_further_pass() -> None:
    """σ_50 is a fiftieth of σ_1: what rounding does to its products is far below tol."""
    operator = Recorder(A.float())
    result = svd(operator, 50, tol=1e-3, method="dense")
    assert (result.status, result.work.products) == (Status.CONVERGED, 62)
    measured = measure_triplets(operator, result.U, result.S, result.V, tol=1e-3)[0]
    assert measured.certificate.claimed == 50


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float64, 1e-3), (torch.float64, 0.1), (torch.float32, 0.1)])
def test_the_whole_of_a_steep_spectrum_keeps_the_residuals_of_its_products(dtype: torch.dtype, tol: float) -> None:
    """Rounding of a mixture in which the smallest triplets weigh most is no mismatch of the largest."""
    operator = Recorder(matrix(np.logspace(0, -12, 12), (12, 12)).to(dtype))
    result = svd(operator, 12, tol=tol, method="dense")
    measured = measure_triplets(operator, result.U, result.S, result.V, tol=tol)[0]
    assert (result.residuals <= measured.residuals + result.floor).all()
    assert result.certificate.radius <= 2 * measured.certificate.radius
    assert result.certificate.claimed == 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("rows", "columns", "rank"), [(70, 86, 3), (80, 40, 2), (50, 87, 1), (53, 90, 0), (73, 76, 0), (150, 140, 0)]
)
def test_all_of_an_exactly_low_rank_matrix_is_known_to_its_zeros(
    dtype: torch.dtype, rows: int, columns: int, rank: int
) -> None:
    """Rank 0 stands for a matrix of ones, where LAPACK's largest zero is furthest from 0."""
    for seed in range(8 if rank else 1):
        random = np.random.default_rng(seed)
        factors = random.integers(-3, 4, (rows, rank)), random.integers(-3, 4, (rank, columns))
        low = torch.from_numpy(factors[0] @ factors[1] if rank else np.ones((rows, columns))).to(dtype)
        for k in (min(rows, columns), max(rank, 1) + 1):
            result = svd(low, k, method="dense", seed=seed)
            assert (result.status, result.certificate.claimed) == (Status.BREAKDOWN_EXACT, k)
            assert (result.S[max(rank, 1) :] <= result.floor).all()


def test_a_spectrum_without_zeros_is_left_as_lapack_found_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(dense, "clean_zeros", unwanted)
    low = matrix(np.r_[np.logspace(0, -12, 30), np.zeros(30)], (60, 60))
    result = svd(low, 30, method="dense")
    _, values, right = torch.linalg.svd(low, full_matrices=False)
    assert torch.equal(result.S, values[:30]) and torch.equal(result.V, right[:30].T)
    with pytest.raises(AssertionError):
        svd(low, 31, method="dense")


def test_a_single_column_is_in_doubt_though_its_random_vector_is_exact() -> None:
    column = torch.linspace(0.1, 1, 9, dtype=torch.float64)[:, None].bfloat16()
    result = svd(column, 1, method="dense", tol=1e-5)
    assert (result.status, result.certificate.claimed) == (Status.NOISE_FLOOR, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_lies_beyond_the_last_value(dtype: torch.dtype) -> None:
    small = torch.diag(torch.tensor([1.0, 0.1], dtype=dtype))
    assert svd(small, 2, method="dense", tol=1e-2, certify="complete").certificate.completeness.complete


@pytest.mark.parametrize(
    ("dtype", "tol", "off"),
    [
        (torch.float32, 1e-4, 3e-4),
        (torch.float32, 1e-5, 3e-5),
        (torch.float64, 1e-12, 1e-11),
        (torch.float16, 1e-2, 3e-2),
        (torch.bfloat16, 0.1, 0.3),
    ],
)
@pytest.mark.parametrize("place", [0, 2])
def test_a_transpose_that_is_off_along_one_triplet_alone_is_not_claimed(
    dtype: torch.dtype, tol: float, off: float, place: int
) -> None:
    """A random vector sees a mismatch in one direction of 200 as a fourteenth of it, or as next to nothing."""
    u, values, vh = torch.linalg.svd(matrix(np.linspace(1, 0.5, 200), (200, 200)))
    wrong = (u * values) @ vh + off * torch.outer(u[:, place], vh[place])
    operator = Recorder(wrong.to(dtype), ((u * values) @ vh).T.to(dtype))
    for seed in range(8):
        result = svd(operator, 4, tol=tol, method="dense", certify="complete", seed=seed)
        assert result.status in (Status.NOISE_FLOOR, Status.NOT_ADJOINT)
        assert result.certificate is None or result.certificate.claimed < 4


@pytest.mark.parametrize(("left", "products"), [(9, 61), (10, 71)])
def test_a_budget_that_leaves_no_pass_has_the_mismatch_in_the_residuals(left: int, products: int) -> None:
    operator = Recorder(A.bfloat16())
    result = svd(operator, 5, tol=1e-3, method="dense", max_products=61 + left)
    assert result.work.products == products
    assert (result.status, result.certificate.claimed) == (Status.NOISE_FLOOR, 0)
    measured = measure_triplets(operator, result.U, result.S, result.V)[0]
    assert (result.residuals >= 0.5 * measured.residuals).all()


def test_only_operators_in_doubt_are_sent_again() -> None:
    noise = torch.randn(60, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    operators = [Recorder(A), Recorder(A + 1e-13 * noise * A.norm() / noise.norm(), A.T), Recorder(A)]
    results = svd_batch(operators, 20, method="dense", tol=1e-12)
    again = results[1].work.products - 62
    assert [result.work.products for result in results] == [62, 62 + again, 62]
    assert 0 < again < 40, "those whose values are large are beyond doubt"
    assert [result.work.products for result in results] == [sum(o.forward) + sum(o.transposed) for o in operators]


def test_a_whole_spectrum_is_complete_only_where_rounding_parts_its_values() -> None:
    """In bfloat16 the floor is many times the values beyond the first."""
    spike = matrix(spectrum("spike", 60), (60, 60)).bfloat16()
    claims = {k: svd(spike, k, tol=0.1, method="dense", certify="complete") for k in (1, 4)}
    assert claims[1].certificate.completeness.complete
    few = claims[4].certificate.completeness
    assert not few.complete
    assert few.tau + few.floor > few.sigma_k
    assert "rounding hides whether σ_5 lies above σ_4" in claims[4].advice
    cluster = svd(matrix(spectrum("multiple", 60), (60, 60)), 6, method="dense", certify="complete")
    assert cluster.certificate.line.endswith(
        "BOUND σ_7 ≤ 1.01 σ_6, σ_6 and σ_7 in one cluster (the whole matrix was seen)"
    )
    assert (
        "they are closer than rounding; ask for another k, or, unless they are equal, compute the operator in a higher "
        "precision" in cluster.advice
    )


def test_a_higher_precision_parts_values_that_differ_as_it_is_advised() -> None:
    near = matrix(np.r_[4, 3, 2, 1.0005, 1.0, np.full(40, 0.3)], (60, 80))
    half, single = (
        svd(near.to(dtype), 4, method="dense", certify="complete") for dtype in (torch.float16, torch.float32)
    )
    assert "unless they are equal, compute the operator in a higher precision" in half.advice
    assert single.certificate.completeness.complete


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("after", [2, 3])
@pytest.mark.parametrize("how", ["doubled", "noisy"])
def test_an_operator_that_changes_after_it_was_compared_is_told(dtype: torch.dtype, after: int, how: str) -> None:
    class Changing(Recorder):
        def spoil(self, product: torch.Tensor) -> torch.Tensor:
            if len(self.forward) + len(self.transposed) <= after:
                return product
            other = 1.0 if how == "doubled" else 1e-3 * len(self.forward)
            return product + (product if how == "doubled" else other * torch.ones_like(product))

    operator = Changing(matrix(spectrum("harmonic", 40), (60, 40)).to(dtype))
    result = svd(operator, 3, method="dense", certify="complete")
    if len(operator.forward) + len(operator.transposed) <= after:  # one mixture shows all: it came before the change
        assert result.status is Status.CONVERGED
    elif how == "doubled" or dtype in (torch.float64, torch.float32):
        assert (result.status, result.certificate) == (Status.NOT_DETERMINISTIC, None)
    else:  # noise of 1e-3 is below the rounding of the operator
        assert result.status in (Status.NOISE_FLOOR, Status.CONVERGED)
