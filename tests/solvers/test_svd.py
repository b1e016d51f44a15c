"""Triplets of matrices with known spectra, by every method."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detjac_lanczos.errors import InputError
from detjac_lanczos.solvers import Status, SVDResult, measure_triplets, norms, svd
from tests.solvers.spectra import Recorder, matrix, spectrum

SHAPES = [(64, 64), (120, 60), (60, 120)]
NAMES = ["geometric", "harmonic", "root", "spike", "cluster", "gap"]


def true_residuals(A: torch.Tensor, result: SVDResult) -> torch.Tensor:
    """Return ρ_R and ρ_L of a result from the matrix itself, in float64."""
    A, U, S, V = (block.to(torch.float64) for block in (A, result.U, result.S, result.V))
    return torch.stack([(A @ V - U * S).norm(dim=0), (A.T @ U - V * S).norm(dim=0)], dim=1)


def assert_sound(A: torch.Tensor, result: SVDResult, tol: float, eps: float) -> None:
    """Assert what every successful result promises."""
    sigma = result.S.to(torch.float64)
    rounding = 10 * eps * float(sigma[0]) * np.sqrt(max(result.work.passes, 1))
    true = true_residuals(A, result)
    assert result.converged, result.advice
    assert bool((sigma[:-1] >= sigma[1:]).all())
    assert float((true - result.residuals).max()) <= rounding
    assert bool((true.amax(dim=1) <= tol * sigma + rounding).all())
    for block in (result.U.to(torch.float64), result.V.to(torch.float64)):
        identity = torch.eye(block.shape[1], dtype=torch.float64)
        assert float((block.T @ block - identity).abs().max()) <= 20 * eps
    assert result.certificate is not None
    assert result.certificate.claimed == result.certificate.k


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "tol", "accuracy"), [(torch.float32, 1e-3, 1e-3), (torch.float64, 1e-6, 1e-6)])
def test_lanczos_finds_the_leading_values(name, shape, dtype, tol, accuracy) -> None:
    for seed in range(3):
        A = matrix(spectrum(name, 60), shape, seed).to(dtype)
        result = svd(A, 8, tol=tol, method="lanczos", seed=seed)
        exact = torch.linalg.svdvals(A.double())[:8]
        assert_sound(A, result, tol, torch.finfo(dtype).eps)
        assert float((result.S.double() / exact - 1).abs().max()) <= accuracy


@pytest.mark.parametrize("name", ["multiple", "staircase"])
@pytest.mark.parametrize("tol", [1e-3, 1e-6])
@pytest.mark.parametrize("block", [2, 3])
def test_copies_beyond_the_width_are_found(name: str, tol: float, block: int) -> None:
    """A Krylov space of width 3 holds three copies of a value at most: five and four need fresh columns."""
    for seed in range(2):
        A = matrix(spectrum(name, 60), (60, 60), seed)
        result = svd(A, 8, tol=tol, method="lanczos", block=block, seed=seed)
        assert_sound(A, result, tol, 2.3e-16)
        np.testing.assert_allclose(result.S, spectrum(name, 60)[:8], rtol=tol)


def test_identity_is_all_copies() -> None:
    result = svd(torch.eye(40, dtype=torch.float64), 8, method="lanczos")
    assert_sound(torch.eye(40), result, 1e-3, 2.3e-16)
    np.testing.assert_allclose(result.S, np.ones(8), rtol=1e-14)


@pytest.mark.parametrize("method", ["lanczos", "dense", "randomized", "auto"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_method_measures_the_same(method: str, shape: tuple[int, int]) -> None:
    A = matrix(spectrum("geometric", 60), shape)
    result = svd(A, 5, tol=1e-4, method=method)
    assert_sound(A, result, 1e-4, 2.3e-16)
    np.testing.assert_allclose(result.S, spectrum("geometric", 60)[:5], rtol=1e-6)
    assert result.work.products_forward + result.work.products_transposed == result.work.products
    assert result.method == method or method == "auto"
    assert result.why


@pytest.mark.parametrize("method", ["lanczos", "dense", "randomized"])
@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scale_changes_nothing_but_scale(method: str, scale: float, dtype: torch.dtype) -> None:
    A = matrix(spectrum("geometric", 40), (50, 40))
    result = svd((A * scale).to(dtype), 4, method=method)
    assert result.converged, result.advice
    np.testing.assert_allclose(result.S.double() / scale, spectrum("geometric", 40)[:4], rtol=1e-3)
    assert float(result.relative.max()) <= 1e-3


@pytest.mark.parametrize("rank", [1, 3, 7, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_low_rank_ends_exactly(rank: int, dtype: torch.dtype) -> None:
    values = np.concatenate([1 / np.arange(1, rank + 1), np.zeros(40 - rank)])
    result = svd(matrix(values, (50, 40)).to(dtype), 8, method="lanczos")
    eps = torch.finfo(dtype).eps
    assert result.converged
    if rank < 8:
        assert result.status is Status.BREAKDOWN_EXACT
    np.testing.assert_allclose(result.S.double(), values[:8], atol=100 * eps)
    assert float(result.residuals.max()) <= max(result.floor, 1e-3 / rank)
    assert float((result.U.T @ result.U - torch.eye(8, dtype=dtype)).abs().max()) <= 20 * eps


@pytest.mark.parametrize("block", [1, 2, 3])
def test_a_spectrum_that_goes_on_is_not_called_whole(block: int) -> None:
    """Of rank 10, known from a space that holds all of it: the ninth value is no zero where eight are returned."""
    low = matrix(np.concatenate([1 / np.arange(1, 11), np.zeros(30)]), (50, 40))
    cut = svd(low, 8, method="lanczos", block=block)
    assert cut.status is Status.CONVERGED and "zero" not in cut.advice
    part = svd(low, threshold=0.15, method="lanczos", block=block)
    assert len(part.S) == 6
    assert part.status is Status.CONVERGED
    whole = svd(low, 12, method="lanczos", block=block)
    assert whole.status is Status.BREAKDOWN_EXACT
    assert "every other singular value is zero" in whole.advice


@pytest.mark.parametrize("method", ["lanczos", "dense", "randomized"])
def test_zero_operator(method: str) -> None:
    result = svd(torch.zeros(30, 20), 5, method=method)
    assert result.converged
    assert float(result.S.abs().max()) == 0.0
    assert float(result.relative.max()) == 0.0
    assert float((result.V.T @ result.V - torch.eye(5)).abs().max()) <= 1e-6


def test_lanczos_breaks_a_zero_operator_down() -> None:
    assert svd(torch.zeros(30, 20), 5, method="lanczos").status is Status.BREAKDOWN_EXACT


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 9), (5, 5)])
def test_all_triplets_of_small_matrices(shape: tuple[int, int]) -> None:
    A = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for method in ("lanczos", "dense", "randomized", "auto"):
        result = svd(A, min(shape), tol=1e-8, method=method)
        assert result.converged, (method, result.advice)
        np.testing.assert_allclose(result.S, torch.linalg.svdvals(A), rtol=1e-10)


def test_graded_spectrum_down_to_the_floor() -> None:
    """From 1 to 1e-30: what lies over the floor is found to tol, what does not is never called converged."""
    A = matrix(spectrum("graded", 40), (40, 40))
    above = svd(A, 12, tol=1e-3, method="lanczos")
    assert_sound(A, above, 1e-3, 2.3e-16)
    np.testing.assert_allclose(above.S, spectrum("graded", 40)[:12], rtol=1e-3)
    below = svd(A, 30, tol=1e-3, method="lanczos")
    assert below.status in (Status.NOISE_FLOOR, Status.BREAKDOWN_EXACT)
    found = int((torch.from_numpy(spectrum("graded", 40)[:30].copy()) > 100 * below.floor).sum())
    np.testing.assert_allclose(below.S[:found], spectrum("graded", 40)[:found], rtol=1e-3)


def test_a_warm_start_needs_fewer_products() -> None:
    A = matrix(spectrum("root", 80), (80, 80))
    cold = svd(A, 6, method="lanczos")
    warm = svd(A + 1e-4 * matrix(spectrum("root", 80), (80, 80), seed=9), 6, method="lanczos", start=cold.V)
    assert warm.converged
    assert warm.work.products < cold.work.products


def test_the_same_seed_gives_the_same_bits_and_others_the_same_values() -> None:
    A = matrix(spectrum("spike", 60), (60, 60))
    first, again, other = (svd(A, 6, method="lanczos", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.U, again.U)
    assert torch.equal(first.S, again.S)
    assert not torch.equal(first.V, other.V)
    np.testing.assert_allclose(first.S, other.S, rtol=1e-5)


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    svd(matrix(spectrum("root", 40), (40, 40)), 4, method="lanczos")
    assert torch.equal(torch.rand(1), expected)


def test_without_a_certificate_residuals_stay() -> None:
    result = svd(torch.diag(torch.arange(20, 0, -1.0)), 3, certify=None)
    assert result.certificate is None
    assert result.residuals.shape == (3, 2)


def test_a_result_shows_itself_in_one_line() -> None:
    shown = repr(svd(torch.diag(torch.arange(20.0, 0, -1)), 3, method="dense"))
    assert shown.startswith("SVDResult(20 × 20, k=3, converged, S=[20, 19, 18], TRIPLETS 3/3, residual ≤ ")
    assert shown.endswith(" passes by dense)")
    many = repr(svd(torch.diag(torch.arange(40.0, 0, -1)), 20, certify=None, method="dense"))
    assert "S=[40, 39, 38, 37, 36, 35, 34, …, 21], no certificate" in many


def test_what_belongs_to_a_result_shows_itself_in_one_line() -> None:
    A = torch.diag(torch.arange(40.0, 0, -1))
    found, whole = svd(A, 2, method="lanczos", certify="complete"), norms(A, exact=True)
    (measured,), missed = measure_triplets(A, found.U, found.S, found.V), svd(A, 2, method="shared_basis").missed
    shown = {
        repr(found.certificate): r"Certificate\(TRIPLETS 2/2, residual ≤ .* · COMPLETE: .*\)",
        repr(found.guards): r"Guards\(40 × 40, S=\[37.99, .*\]\)",
        repr(measured): r"Measurement\(relative residuals ≤ \S+ and \S+, TRIPLETS 2/2, residual ≤ \S+\)",
        repr(missed): r"Missed\(values=\[\S+, \S+\], sigma_1=\(\S+, \S+\), confidence=0.99(, flagged)?\)",
        repr(norms(A, found)): r"Norms\(frobenius=\S+ \(\S+, \S+\), stable_rank=\S+ \(\S+, \S+\), confidence=0.95\)",
        repr(whole): r"Norms\(frobenius=148.8 .*, stable_rank=13.84 .*, 40 rows, 40 columns, confidence=1\)",
    }
    for line, words in shown.items():
        assert re.fullmatch(words, line) and len(line) < 300, line


def test_few_columns_are_spent() -> None:
    """Columns both ways at the default width, for a slow spectrum with a spike, as the first token has it."""
    A = matrix(spectrum("spike", 400), (400, 400))
    operator = Recorder(A.float())
    result = svd(operator, 8, method="lanczos")
    assert result.converged
    assert sum(operator.forward) == result.work.products_forward
    assert sum(operator.transposed) == result.work.products_transposed
    assert len(operator.forward) + len(operator.transposed) == result.work.passes
    assert result.work.products <= 64


@pytest.mark.parametrize(
    "options",
    [
        {"k": 0},
        {"k": 21},
        {"k": 2.0},
        {"k": True},
        {"tol": "x"},
        {"tol": None},
        {"tol": True},
        {"tol": np.complex128(1e-3)},
        {"block": 2.5},
        {"block": "wide"},
        {"max_products": 50.0},
        {"seed": None},
        {"seed": 1.5},
        {"seed": 2**32},
        {"seed": -1},
        {"callback": 3},
        {"method": ["dense"]},
        {"certify": ["triplets"]},
        {"start": "warm"},
        {"start": 3.0},
        {"start": np.ones((20, 2), dtype=complex)},
        {"tol": 0.0},
        {"tol": float("nan")},
        {"method": "arnoldi"},
        {"block": 0},
        {"max_products": 7},
        {"certify": "everything"},
        {"start": torch.ones(3, 2)},
        {"start": torch.ones(20, 2, device="meta")},
        {"start": torch.full((20, 2), float("nan"))},
        {"start": torch.eye(20).to_sparse()},
        {"start": torch.eye(20), "method": "randomized"},
        {"block": 2, "method": "dense"},
        {"block": 2, "method": "randomized"},
        {"block": 2, "method": "shared_basis"},
        {"choices": "dense"},
        {"choices": {"method": "arnoldi"}},
        {"choices": {"block": 0}},
        {"choices": {"block": -1}, "method": "lanczos"},
        {"choices": {"method": "randomized"}, "certify": "complete"},
    ],
)
def test_options_that_cannot_be_honoured(options: dict) -> None:
    with pytest.raises(InputError) as refused:
        svd(torch.eye(20), **({"k": 4} | options))
    assert "\n" not in str(refused.value)


def test_a_block_is_for_the_lanczos_that_auto_may_choose() -> None:
    dense = svd(torch.eye(20), 4)
    assert svd(torch.eye(20), 4, block=2).method == svd(torch.eye(20), 4, block=2, choices=dense.choices).method
    assert svd(torch.eye(20), 4, method="dense", choices={"method": "lanczos", "block": 3}).method == dense.method


def test_options_and_starts_of_numpy_are_taken() -> None:
    A = matrix(spectrum("root", 40), (40, 40))
    cold = svd(A, np.int64(4), tol=np.float32(1e-3), block=np.int32(2), seed=np.int64(3), method="lanczos")
    torch.testing.assert_close(cold.S, svd(A, 4, tol=float(np.float32(1e-3)), block=2, seed=3, method="lanczos").S)
    expected = svd(A, 4, method="lanczos", start=cold.V).S
    for dtype in (cold.V.numpy().dtype, ">f8", np.longdouble):
        assert torch.equal(svd(A, 4, method="lanczos", start=cold.V.numpy().astype(dtype)).S, expected)
    assert torch.equal(svd(A, 4, method="lanczos", start=cold.V.flip(0).numpy()[::-1]).S, expected)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 30),
    columns=st.integers(1, 30),
    block=st.integers(1, 5),
    exponents=st.lists(st.floats(-6, 6), min_size=1, max_size=30),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_any_matrix_any_width(rows, columns, block, exponents, seed, data) -> None:
    """Whatever is called converged is: residuals true, values lower bounds, vectors orthonormal."""
    values = np.sort(2.0 ** np.array(exponents[: min(rows, columns)]))[::-1]
    A = matrix(values, (rows, columns), seed)
    k = data.draw(st.integers(1, min(rows, columns)))
    result = svd(A, k, tol=1e-5, method="lanczos", block=block, seed=seed)
    assert result.converged, result.advice
    exact = torch.linalg.svdvals(A)[:k]
    rounding = 1e-12 * float(exact[0])
    assert bool((exact + rounding >= result.S).all())
    assert float((true_residuals(A, result) - result.residuals).max()) <= rounding
    assert float((result.U.T @ result.U - torch.eye(k, dtype=A.dtype)).abs().max()) <= 1e-13
    assert float((result.V.T @ result.V - torch.eye(k, dtype=A.dtype)).abs().max()) <= 1e-13


def test_zeros_beside_two_close_values_are_told_as_zeros() -> None:
    A = matrix(np.array([0.07602, 0.07329]), (5, 7), 35959)
    statuses = {svd(A, 3, tol=1e-5, method="lanczos", block=3, seed=seed).status.value for seed in range(30)}
    assert statuses == {"breakdown_exact"}


def test_a_small_operator_needs_no_products_for_triplets_that_it_lacks() -> None:
    A = torch.diag(torch.arange(5.0, 0.0, -1.0, dtype=torch.float64))
    assert svd(A, max_products=10, method="lanczos").S.shape == (5,)
    with pytest.raises(InputError, match="max_products = 9 cannot hold k = 5 triplets: give 10 or more"):
        svd(A, max_products=9)


@pytest.mark.parametrize("count", [1000.0, "40", True, np.float64(50)])
def test_a_number_of_products_is_whole(count: object) -> None:
    with pytest.raises(InputError, match=re.escape(f"max_products = {count!r} counts no products: give a whole")):
        svd(torch.eye(8), 3, max_products=count)
    assert svd(torch.eye(8), 3, max_products=np.int32(40)).work.products <= 40


@pytest.mark.filterwarnings("error")
def test_a_list_of_arrays_is_no_start() -> None:
    for start in ([np.ones((40, 1))], (np.ones(40), np.ones(40))):
        with pytest.raises(InputError, match=rf"start block 0 is a {type(start).__name__}: give a tensor of shape"):
            svd(torch.eye(40), 3, method="lanczos", start=start)


def test_advice_on_a_cluster_across_k_is_one_sentence() -> None:
    A = torch.diag(torch.tensor([2.0, *[1.0] * 40], dtype=torch.float64))
    advice = svd(A, 3, method="lanczos", certify="complete").advice
    assert advice.endswith(
        "σ_3 and σ_4 are closer than the tolerance: no probe can part them; ask for k = 1, where a gap follows."
    )
