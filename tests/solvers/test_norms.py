"""Intervals of norms hold as often as they say, on known spectra, with exact, loose and surveyed triplets."""

import math

import numpy as np
import pytest
import torch

from detjac_lanczos.errors import InputError, OperatorError
from detjac_lanczos.solvers import flagged, norms, norms_batch, svd, svd_batch, worst
from detjac_lanczos.solvers.deflated_norm import frobenius_interval, stable_rank_interval
from tests.solvers.spectra import Recorder, SharingBatch, matrix, spectrum

NAMES = ["geometric", "root", "spike", "flat", "staircase"]
DRAWS = 300


def enough(covered: float, confidence: float, draws: int = DRAWS) -> bool:
    """Whether so many of the draws are no fewer than chance explains."""
    return covered >= draws * confidence - 3 * math.sqrt(draws * confidence * (1 - confidence))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("tol", [1e-4, 0.3])
def test_intervals_cover(name: str, confidence: float, tol: float) -> None:
    """Loose triplets are Ritz triplets still: s_j = u_jᵀ A v_j, and what they lack is measured."""
    A = matrix(spectrum(name, 40), (50, 40))
    triplets = svd(A, 4, tol=tol, method="lanczos")
    frobenius, rank = float(A.norm()), float((A.norm() / torch.linalg.matrix_norm(A, ord=2)) ** 2)
    rows, columns = A.norm(dim=1), A.norm(dim=0)
    covered = np.zeros(4)
    squares = []
    for seed in range(DRAWS):
        found = norms(A, triplets, lengths=True, confidence=confidence, seed=seed)
        assert found.rows is not None and found.columns is not None
        squares.append(found.frobenius.value**2)
        covered += [
            found.frobenius.low <= frobenius <= found.frobenius.high,
            found.stable_rank.low <= rank <= found.stable_rank.high,
            float(((found.rows.low <= rows) & (rows <= found.rows.high)).double().mean()),
            float(((found.columns.low <= columns) & (columns <= found.columns.high)).double().mean()),
        ]
    assert all(enough(count, confidence) for count in covered), covered
    assert abs(np.mean(squares) - frobenius**2) <= 4 * np.std(squares) / math.sqrt(DRAWS)


@pytest.mark.parametrize("name", ["harmonic", "spike", "root"])
def test_intervals_cover_where_sigma_1_was_not_found(name: str) -> None:
    """A residual says that some value is near: no more than ‖A‖_F bounds σ_1 then."""
    A = matrix(spectrum(name, 150), (150, 150))
    frobenius, covered, draws = float(A.norm()), np.zeros(2), 100
    rank = (frobenius / float(torch.linalg.matrix_norm(A, ord=2))) ** 2
    for seed in range(draws):
        found = norms(A, svd(A, 2, max_products=4, method="lanczos", seed=seed), seed=seed)
        covered += [
            found.frobenius.low <= frobenius <= found.frobenius.high,
            1.0 <= found.stable_rank.low <= rank <= found.stable_rank.high,
        ]
    assert all(enough(count, 0.95, draws) for count in covered), covered


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_stable_rank_is_never_below_one(dtype: torch.dtype) -> None:
    A = matrix(np.array([1.0, 1e-3]), (60, 60)).to(dtype)
    found = norms(A, svd(A, 1, method="lanczos", tol=0.05)).stable_rank
    assert 1.0 <= found.low <= found.value <= found.high


@pytest.mark.parametrize(("scale", "expected"), [(1.0, (math.nan, 1.0, 5.0)), (0.0, (0.0, 0.0, 0.0))])
def test_without_triplets_a_stable_rank_lies_between_one_and_the_smaller_dimension(
    scale: float, expected: tuple[float, float, float]
) -> None:
    A = scale * matrix(np.arange(5.0, 0.0, -1.0), (5, 8))
    found = norms(A, svd(A, threshold=10.0, method="lanczos")).stable_rank
    assert (found.value, found.low, found.high) == pytest.approx(expected, nan_ok=True)


def test_row_intervals_are_sharp() -> None:
    """They rest on χ² alone: they fail about as often as they say."""
    A = matrix(spectrum("root", 40), (50, 40))
    triplets = svd(A, 2)
    rows, inside = A.norm(dim=1), 0.0
    for seed in range(DRAWS):
        found = norms(A, triplets, lengths=True, confidence=0.8, seed=seed).rows
        assert found is not None
        inside += float(((found.low <= rows) & (rows <= found.high)).double().mean())
    assert inside / DRAWS == pytest.approx(0.8, abs=0.02)


def test_known_triplets_narrow_the_intervals() -> None:
    A = matrix(spectrum("spike", 60), (60, 60))
    few, many = (norms(A, svd(A, k)).frobenius for k in (1, 20))
    assert many.high - many.low < 0.6 * (few.high - few.low)


def test_residuals_of_triplets_widen_the_intervals() -> None:
    """What was missed lies below s_k + ‖residuals‖, and σ_1 below s_1 + its residual."""
    A = matrix(spectrum("root", 50), (60, 50))
    U, S, Vh = torch.linalg.svd(A, full_matrices=False)
    drawn = torch.randn(16, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    U, S, V, eps = U[:, :3], S[:3], Vh[:3].T, 2.0**-52

    def residuals(size: float) -> torch.Tensor:
        return torch.full((3, 2), size, dtype=torch.float64)

    sharp, wide = (
        frobenius_interval(drawn @ A, drawn, U, S, V, residuals(size), 0.95, eps, in_order=True)[0]
        for size in (0.0, 2.0)
    )
    assert wide.value == sharp.value
    assert wide.high > sharp.high * 1.01
    sharp, wide = (
        stable_rank_interval(sharp, 1.0, S, residuals(size), eps, in_order=True, rank=50) for size in (0.0, 0.5)
    )
    assert wide.low == pytest.approx(sharp.low * (S[0] / (S[0] + 0.5)) ** 2)


def test_a_surveys_triplets_serve_too() -> None:
    """Their residuals are not all known: the interval then assumes nothing about what was missed."""
    matrices = [matrix(spectrum("root", 40), (50, 40), seed) for seed in range(4)]
    results = svd_batch(matrices, 2, method="shared_basis")
    covered = np.zeros(2)
    for seed in range(DRAWS):
        for A, found in zip(matrices, norms_batch(matrices, results, confidence=0.9, seed=seed), strict=True):
            rank = float((A.norm() / torch.linalg.matrix_norm(A, ord=2)) ** 2)
            covered += [
                found.frobenius.low <= float(A.norm()) <= found.frobenius.high,
                found.stable_rank.low <= rank <= found.stable_rank.high,
            ]
    assert all(enough(count / 4, 0.9) for count in covered)


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
def test_exact_is_the_matrix_written_out(shape: tuple[int, int]) -> None:
    A = matrix(spectrum("harmonic", 20), shape)
    found = norms(A, exact=True)
    values = spectrum("harmonic", 20)
    assert found.frobenius.value == pytest.approx(math.sqrt((values**2).sum()), rel=1e-12)
    assert found.stable_rank.value == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-12)
    assert (found.confidence, found.probes) == (1.0, 0)
    assert found.frobenius.low == found.frobenius.high == found.frobenius.value
    assert found.rows is not None and found.columns is not None
    torch.testing.assert_close(found.rows.value, A.norm(dim=1))
    torch.testing.assert_close(found.columns.value, A.norm(dim=0))


def test_what_triplets_hold_entirely_is_exact() -> None:
    A = matrix(np.array([3.0, 2.0, 1.0]), (30, 20))
    found = norms(A, svd(A, 3, tol=1e-10), lengths=True)
    assert found.frobenius.low == pytest.approx(math.sqrt(14), rel=1e-9)
    assert found.frobenius.high == pytest.approx(math.sqrt(14), rel=1e-9)
    assert found.rows is not None
    torch.testing.assert_close(found.rows.low, A.norm(dim=1), rtol=1e-9, atol=0)
    torch.testing.assert_close(found.rows.high, A.norm(dim=1), rtol=1e-9, atol=0)


def test_products_are_those_it_says() -> None:
    A = matrix(spectrum("root", 40), (50, 40))
    triplets = svd(A, 3)
    operator = Recorder(A)
    norms(operator, triplets, probes=12)
    assert (operator.forward, operator.transposed) == ([], [12])
    norms(operator, triplets, probes=12, lengths=True)
    assert (operator.forward, operator.transposed) == ([15], [12, 12, 15])


def test_operators_of_one_height_share_their_probes() -> None:
    matrices = [matrix(spectrum(name, 40), (50, 40)) for name in NAMES]
    batch = SharingBatch(matrices, [1.0] * 5)
    results = svd_batch(matrices, 3, method="lanczos")
    together = norms_batch(batch, results)
    assert batch.calls == [("shared", [16])]
    for A, one, result in zip(matrices, together, results, strict=True):
        assert one.frobenius == norms(A, result).frobenius
    tall = matrix(spectrum("root", 40), (70, 40))
    mixed = norms_batch([matrices[0], tall], [results[0], svd(tall, 3)])
    assert mixed[1].frobenius.low <= float(tall.norm()) <= mixed[1].frobenius.high


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_changes_nothing_but_scale(scale: float) -> None:
    A = matrix(spectrum("root", 40), (50, 40))
    for dtype in (torch.float32, torch.float64):
        scaled, plain = ((A * s).to(dtype) for s in (scale, 1.0))
        one, other = (norms(B, svd(B, 3, method="lanczos"), lengths=True) for B in (scaled, plain))
        assert one.frobenius.high / scale == pytest.approx(other.frobenius.high, rel=1e-4)
        assert one.stable_rank.low == pytest.approx(other.stable_rank.low, rel=1e-4)
        assert one.rows is not None and other.rows is not None
        torch.testing.assert_close(one.rows.high / scale, other.rows.high, rtol=1e-3, atol=0)


@pytest.mark.parametrize("exponent", [-1000, -565, -531, 515, 565, 1000])
def test_squares_that_leave_the_range_of_float64_are_taken_in_units_of_the_operator(exponent: int) -> None:
    A = matrix(spectrum("root", 40), (50, 40))
    scaled, scale = A * 2.0**exponent, 2.0**exponent
    lengths = torch.linalg.svdvals(A)
    total, rank = float(lengths.norm()), float((lengths / lengths[0]).square().sum())
    exact, probed = norms(scaled, exact=True), norms(scaled, svd(scaled, 3, method="lanczos"), lengths=True)
    plain = norms(A, svd(A, 3, method="lanczos"), lengths=True)
    for end in ("value", "low", "high"):
        assert getattr(exact.frobenius, end) / scale == pytest.approx(total, rel=1e-12)
        assert getattr(exact.stable_rank, end) == pytest.approx(rank, rel=1e-12)
        assert getattr(probed.frobenius, end) / scale == pytest.approx(getattr(plain.frobenius, end), rel=1e-9)
        assert getattr(probed.stable_rank, end) == pytest.approx(getattr(plain.stable_rank, end), rel=1e-9)
        for name, axis in (("rows", 1), ("columns", 0)):
            lengths, expected = (getattr(getattr(found, name), end) for found in (probed, plain))
            torch.testing.assert_close(lengths / scale, expected, rtol=1e-9, atol=0)
            torch.testing.assert_close(getattr(getattr(exact, name), end) / scale, A.norm(dim=axis))


def test_each_row_and_column_has_units_of_its_own() -> None:
    sizes = 10.0 ** -torch.arange(0, 300, 30, dtype=torch.float64)
    for found in (
        norms(torch.diag(sizes), exact=True),
        norms(torch.diag(sizes), svd(torch.diag(sizes), 2), lengths=True),
    ):
        assert found.rows is not None and found.columns is not None
        for lengths in (found.rows, found.columns):
            assert bool((lengths.low <= sizes * (1 + 1e-9)).all() and (lengths.high >= sizes * (1 - 1e-9)).all())
            assert bool((lengths.low > 0.01 * sizes).all())


def test_a_norm_that_overflows_lies_between_the_largest_number_and_inf() -> None:
    A, largest = torch.full((9, 6), 1e308, dtype=torch.float64), torch.finfo(torch.float64).max
    found = norms(A, exact=True)
    assert found.rows is not None
    assert (found.frobenius.value, found.frobenius.low, found.frobenius.high) == (math.inf, largest, math.inf)
    assert bool((found.rows.low == largest).all() and (found.rows.high == math.inf).all())
    assert found.stable_rank.value == pytest.approx(1.0)


def test_a_stable_rank_that_overflows_is_inf() -> None:
    """Of triplets that are those of another operator, in another unit."""
    A = matrix(spectrum("root", 20), (30, 20))
    assert norms(A, svd(1e-200 * A, 3)).stable_rank.high == math.inf


def test_a_zero_operator_has_no_size() -> None:
    zero = torch.zeros(20, 10)
    for found in (norms(zero, svd(zero, 2), lengths=True), norms(zero, exact=True)):
        assert found.frobenius.value == found.frobenius.high == found.stable_rank.value == 0.0
        assert found.rows is not None and not found.rows.high.any()


def test_what_cannot_be_measured_is_one_clear_line() -> None:
    A = matrix(spectrum("root", 40), (50, 40))
    triplets = svd(A, 3)
    for options, message in (
        ({"triplets": None}, "exact=True"),
        ({"probes": 2}, "probes ≥ 3"),
        ({"probes": 3.5}, "got 3.5"),
        ({"probes": "a"}, "got 'a'"),
        ({"confidence": "a"}, "got 16 and 'a'"),
        ({"seed": "x"}, "seed = 'x'"),
        ({"seed": 2**32}, "hold 32 bits"),
        ({"triplets": [triplets]}, "result 0 is a list"),
        ({"confidence": 0.2}, "16 probes prove no interval"),
        ({"confidence": 1.0}, "confidence"),
    ):
        with pytest.raises(InputError, match=message):
            norms(A, **({"triplets": triplets} | options))
    with pytest.raises(InputError, match="result 0 has no triplets"):
        norms(A.T, triplets)
    for answer in (lambda: norms_batch([A], triplets), lambda: flagged(triplets), lambda: worst(triplets, 1)):
        with pytest.raises(InputError, match="results are a SVDResult: give a list"):
            answer()
    for options in ({"triplets": triplets}, {"exact": True}):
        with pytest.raises(InputError, match="norms takes one operator, these are 2: give them to norms_batch"):
            norms([A, A], **options)
    with pytest.raises(InputError, match="1 results for 2"):
        norms_batch([A, A], [triplets])
    for shape in ((0, 5), (5, 0)):
        for options in ({"triplets": triplets}, {"exact": True}):
            with pytest.raises(InputError, match="no singular values"):
                norms(np.zeros(shape), **options)
    for broken in ({"exact": True}, {"triplets": triplets}):
        with pytest.raises(OperatorError, match="NaN"):
            norms(A * float("nan"), **broken)


@pytest.mark.parametrize(
    ("dtype", "values", "k"),
    [
        (torch.bfloat16, [1.0, 0.5, 0.2], 3),
        (torch.float16, [1.0, 0.5, 0.2], 3),
        (torch.float32, [0.5**j for j in range(60)], 20),
        (torch.float64, [0.5**j for j in range(60)], 50),
        (torch.bfloat16, [1 / j for j in range(1, 61)], 3),
    ],
)
def test_intervals_hold_rounding(dtype: torch.dtype, values: list[float], k: int) -> None:
    """Where triplets hold nearly all, what is left is the rounding of the operator."""
    A = matrix(np.array(values), (60, 60)).to(dtype)
    exact = A.double()
    total = float(exact.norm())
    rank = (total / float(torch.linalg.matrix_norm(exact, ord=2))) ** 2
    found = svd(A, k, method="lanczos", tol=1e-3)
    held, seeds = torch.zeros(4), 60
    for seed in range(seeds):
        result = norms(A, found, lengths=True, seed=seed)
        for at, (interval, truth) in enumerate([(result.frobenius, total), (result.stable_rank, rank)]):
            assert 0.0 <= interval.low <= interval.value <= interval.high
            held[at] += interval.low <= truth <= interval.high
        for at, (lengths, truth) in enumerate([(result.rows, exact.norm(dim=1)), (result.columns, exact.norm(dim=0))]):
            assert (lengths.low >= 0.0).all()
            held[2 + at] += ((lengths.low <= truth) & (truth <= lengths.high)).float().mean()
    assert (held >= 0.9 * seeds).all(), held


def test_a_threshold_above_every_value_leaves_norms_to_the_probes() -> None:
    A = matrix(np.array([3.0, 2.0, 1.0]), (30, 20))
    none = svd(A, threshold=100.0)
    assert len(none.S) == 0
    result = norms(A, none, lengths=True)
    assert result.frobenius.low <= float(A.norm()) <= result.frobenius.high
    assert result.stable_rank.low <= 14 / 9 <= result.stable_rank.high
    assert len(result.rows.value) == 30


def test_a_number_of_operators_is_none_below_zero() -> None:
    for count in (-1, 1.5, True):
        with pytest.raises(InputError, match="no number of operators"):
            worst([svd(torch.eye(3), 1)], count)
