"""All values above a threshold, or a share of the energy, in place of a number of triplets."""

import numpy as np
import pytest
import torch
from scipy.stats import binom

from detjac_lanczos.errors import InputError
from detjac_lanczos.solvers import Status, svd, svd_batch
from detjac_lanczos.solvers.energy import EnergySketch
from tests.solvers.spectra import Recorder, SharingBatch, matrix, spectrum
from tests.solvers.test_completeness import blind

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["geometric", "harmonic", "root", "spike", "staircase", "cluster"]


def between(values: np.ndarray, count: int) -> float:
    """Return a threshold under ``count`` values, in the next gap that there is."""
    count += int(np.argmax(values[count - 1 : -1] - values[count:] > 0.01 * values[count - 1])) if count else 0
    return float(values[0] * 1.1) if not count else float((values[count - 1] + values[count]) / 2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["lanczos", "dense", "auto"])
@pytest.mark.parametrize("count", [0, 1, 3, 13])
def test_all_values_above_a_threshold(name: str, method: str, count: int) -> None:
    values = spectrum(name, 80)
    threshold = between(values, count)
    expected = int((values > threshold).sum())
    for seed in range(2):
        result = svd(matrix(values, (80, 100), seed), threshold=threshold, method=method, tol=1e-4, seed=seed)
        assert result.status is Status.CONVERGED, result.advice
        assert result.S.shape == (expected,)
        assert result.U.shape == (80, expected)
        assert result.V.shape == (100, expected)
        np.testing.assert_allclose(result.S, values[:expected], rtol=1e-4)
        assert result.certificate.claimed == result.certificate.k == expected
        found = {0: "No singular value", 1: "The one triplet"}.get(expected, f"All {expected} triplets")
        assert f"{found} above" in result.advice


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_a_threshold_is_in_the_units_of_the_operator(scale: float) -> None:
    values = spectrum("harmonic", 60)
    result = svd(matrix(values, (60, 60)) * scale, threshold=0.3 * scale, method="lanczos", certify="complete")
    assert len(result.S) == 3
    assert result.certificate.completeness.complete


def test_the_value_below_needs_no_convergence() -> None:
    """It is enough to know that it lies below: two triplets above a wide gap cost less than three."""
    values = np.r_[3.0, 2.0, np.linspace(0.5, 0.4, 98)]
    A = matrix(values, (100, 100))
    found = svd(A, threshold=1.5, method="lanczos")
    assert len(found.S) == 2
    assert svd(A, 3, method="lanczos").work.products > found.work.products


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_is_above_a_small_threshold(dtype: torch.dtype) -> None:
    values = np.r_[np.linspace(3.0, 1.0, 5), np.zeros(35)]
    result = svd(matrix(values, (40, 50)).to(dtype), threshold=1e-3, method="lanczos")
    assert result.converged
    np.testing.assert_allclose(result.S, values[:5], rtol=1e-5)
    whole = svd(matrix(spectrum("root", 20), (20, 30)), threshold=1e-3, method="lanczos")
    assert len(whole.S) == 20


def test_a_threshold_claimed_complete() -> None:
    values = np.r_[3.0, 2.0, 1.5, np.linspace(1.0, 0.1, 97)]
    A = matrix(values, (100, 120))
    result = svd(A, threshold=1.3, method="lanczos", certify="complete")
    claim = result.certificate.completeness
    assert claim.complete
    assert claim.line.startswith("COMPLETE: all 3 σ above 1.3 (δ = 1e-6, ")
    assert claim.upper[3] <= 1.3
    none = svd(A, threshold=4.0, method="lanczos", certify="complete").certificate
    assert none.completeness.line.startswith("COMPLETE: no σ above 4 (δ = 1e-6, ")
    assert none.line == f"TRIPLETS 0/0 · {none.completeness.line}"
    dense = svd(A, threshold=1.3, method="dense", certify="complete").certificate.completeness
    assert dense.line == "COMPLETE: all 3 σ above 1.3 (the whole matrix was seen)"


def test_a_threshold_that_a_bound_is_infinitely_often_above() -> None:
    A = 1e13 * matrix(spectrum("root", 50), (60, 50))
    claim = svd(A, threshold=1e-310, method="lanczos", certify="complete").certificate.completeness
    assert claim is not None and claim.line


def test_a_value_at_the_threshold_cannot_be_parted() -> None:
    values = np.r_[3.0, 2.0, 1.5, 1.0, np.linspace(0.9, 0.1, 96)]
    result = svd(matrix(values, (100, 100)), threshold=1.0 + 1e-9, method="lanczos", certify="complete")
    claim = result.certificate.completeness
    assert not claim.complete
    assert claim.cluster
    assert claim.upper[3] >= 1.0
    assert "BOUND σ_4 ≤ " in claim.line
    assert result.advice.endswith("move the threshold into a gap of the spectrum, or ask for a smaller tol.")
    closer = svd(matrix(values, (100, 100)), threshold=1.0 + 1e-9, method="lanczos", tol=1e-11, certify="complete")
    assert closer.certificate.completeness.complete


def test_a_written_out_value_that_rounding_hides_is_not_called_unknown() -> None:
    result = svd(torch.diag(torch.tensor([1.0, 0.5, 0.05])).bfloat16(), threshold=0.1, certify="complete")
    assert "BOUND σ_3 ≤ " in result.certificate.line
    assert "rounding hides whether σ_3 lies above the threshold; move it" in result.advice
    assert "no probe was made" not in result.advice


@pytest.mark.parametrize("method", ["lanczos", "dense"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_value_under_the_threshold_by_less_than_rounding_is_not_claimed_above(
    method: str, dtype: torch.dtype
) -> None:
    """Of thresholds just above σ_3, within rounding, some leave it among those found: never in a complete claim."""
    hidden = 0
    for seed in range(8):
        A = torch.from_numpy(np.random.default_rng(seed).standard_normal((12, 9))).to(dtype)
        exact = np.linalg.svd(A.double().numpy(), compute_uv=False)
        for digits in (0.0, 0.1, 0.5, 1.0, 2.0):
            threshold = float(exact[2] * (1 + digits * torch.finfo(dtype).eps))
            result = svd(A, threshold=threshold, method=method, certify="complete", tol=1e-6)
            claim = result.certificate.completeness
            assert not claim.complete
            if len(result.S) == 3 and claim.hidden:
                hidden += 1
                assert claim.line.startswith("BOUND at most 3 σ above ")
                assert "rounding hides whether σ_3 lies above the threshold; move it" in result.advice
    assert hidden


@pytest.mark.parametrize("goal", [{"threshold": 0.3}, {"energy": 0.9}])
def test_a_start_begins_a_search_for_an_unknown_number(goal: dict[str, float]) -> None:
    A = matrix(spectrum("root", 40), (60, 40))
    assert svd(A, **goal).method == "dense"
    begun = svd(A, **goal, start=svd(A, 8).V)
    assert (begun.method, begun.converged) == ("lanczos", True)


def test_a_hidden_value_above_the_threshold_is_found(monkeypatch) -> None:
    A = matrix(spectrum("root", 90), (120, 90))
    left, exact, right = torch.linalg.svd(A, full_matrices=False)
    blind(monkeypatch, [left[:, 2], right[2]])
    threshold = float(exact[4] + exact[5]) / 2
    assert len(svd(A, threshold=threshold, method="lanczos").S) == 4
    for seed in range(3):
        result = svd(A, threshold=threshold, method="lanczos", certify="complete", seed=seed)
        np.testing.assert_allclose(result.S, exact[:5], rtol=1e-3)
        assert result.certificate.completeness.complete


def test_claims_about_thresholds_fail_no_more_often_than_delta() -> None:
    failures, trials = 0, 0
    for name in NAMES:
        values = spectrum(name, 70)
        for seed in range(10):
            threshold = between(values, 1 + seed)
            A = matrix(values, (70, 90), seed)
            result = svd(A, threshold=threshold, method="lanczos", certify="complete", delta=0.05, seed=seed)
            claim = result.certificate.completeness
            failures += bool((values[: len(claim.upper)] > np.array(claim.upper)[: len(values)] + 1e-12).any())
            failures += claim.complete and len(result.S) != int((values > threshold).sum())
            trials += 1
    assert failures <= binom.ppf(1 - 1e-5, trials, 0.05)


@pytest.mark.parametrize("name", [*NAMES, "flat"])
@pytest.mark.parametrize("energy", [0.3, 0.9, 0.99])
def test_a_share_of_the_energy(name: str, energy: float) -> None:
    """The share is reached, the interval holds it, and few triplets more than needed are found."""
    values = spectrum(name, 60)
    shares = np.cumsum(values**2) / (values**2).sum()
    needed = int(np.searchsorted(shares, energy)) + 1
    for seed in range(2):
        A = matrix(values, (60, 80), seed)
        result = svd(A, energy=energy, method="lanczos", seed=seed)
        k = len(result.S)
        assert result.converged, result.advice
        low, high = result.energy
        assert low <= shares[k - 1] * (1 + 1e-6)
        assert high >= shares[k - 1] * (1 - 1e-4)
        assert energy <= shares[k - 1] * (1 + 1e-4)
        assert needed <= k <= max(1.5 * needed, needed + 4)
        exact = svd(A, energy=energy, method="dense")
        assert len(exact.S) == needed
        assert exact.energy == pytest.approx((shares[needed - 1],) * 2)


def test_intervals_of_energy_hold_as_often_as_they_say() -> None:
    values = spectrum("root", 100)
    shares = np.cumsum(values**2) / (values**2).sum()
    outside, trials = 0, 150
    for seed in range(trials):
        result = svd(matrix(values, (100, 100), seed), energy=0.3, tol=1e-2, method="lanczos", seed=seed)
        low, high = result.energy
        outside += not low <= shares[len(result.S) - 1] * (1 + 1e-4) or not high >= shares[len(result.S) - 1] * (
            1 - 1e-4
        )
    assert outside <= binom.ppf(1 - 1e-5, trials, 0.05)


def test_intervals_of_energy_hold_though_the_search_stops_by_them() -> None:
    """Equal values in a small space: every pass changes what is left by much, and the cotangents choose the last."""
    outside, trials = 0, 500
    for seed in range(trials):
        A = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).Q
        low, high = (result := svd(A, energy=0.5, tol=0.05, method="lanczos", seed=seed)).energy
        share = float((result.S**2).sum()) / 12
        outside += not low <= share * (1 + 1e-9) or not high >= share * (1 - 1e-9)
    assert outside <= 0.05 * trials


def test_intervals_of_energy_are_in_the_units_of_the_products_squared() -> None:
    A = matrix(spectrum("root", 50), (60, 50))
    nothing = torch.empty(0, 60, dtype=torch.float64), torch.empty(0, 50, dtype=torch.float64)

    def total(scale: float) -> tuple[float, float]:
        sketch = EnergySketch(nothing[0], seed=0)
        sketch.absorb(scale * sketch.rows @ A)
        return sketch.total(*nothing, largest=scale)

    assert total(3.0) == pytest.approx([9 * end for end in total(1.0)])


@pytest.mark.parametrize("budget", [18, 20, 22, 30])
def test_intervals_of_energy_hold_where_the_budget_ends_before_the_largest_value_is_found(budget: int) -> None:
    values = 1 / np.arange(1, 301)
    A, outside, trials = torch.diag(torch.from_numpy(values)), 0, 60
    for seed in range(trials):
        result = svd(A, energy=0.9, method="lanczos", max_products=budget, seed=seed)
        share = float((result.S**2).sum()) / float((values**2).sum())
        outside += not result.energy[0] <= share * (1 + 1e-9) or not share * (1 - 1e-9) <= result.energy[1]
    assert outside <= binom.ppf(1 - 1e-5, trials, 0.05)


def test_goals_in_a_batch() -> None:
    """Each operator has as many triplets as it needs, company changes nothing, and the sketch is one shared pass."""
    matrices = [matrix(spectrum(name, 60), (60, 60), seed) for seed, name in enumerate(["geometric", "spike", "root"])]
    batch = SharingBatch(matrices, [3.0, 2.0, 1.0])
    together = svd_batch(batch, energy=0.8, method="lanczos", certify="complete")
    assert batch.calls[0] == ("shared", [16])
    assert len({len(result.S) for result in together}) > 1
    for A, result in zip(matrices, together, strict=True):
        alone = svd(A, energy=0.8, method="lanczos", certify="complete")
        torch.testing.assert_close(result.S, alone.S, rtol=1e-9, atol=0)
        assert result.work.products == alone.work.products
        assert result.certificate.completeness.line == alone.certificate.completeness.line


@pytest.mark.parametrize("goal", [{"threshold": 0.12}, {"energy": 0.9}])
@pytest.mark.parametrize("budget", [20, 35, 60])
def test_the_budget_is_kept(goal: dict, budget: int) -> None:
    operator = Recorder(matrix(spectrum("root", 120), (120, 120)))
    result = svd(operator, **goal, method="lanczos", max_products=budget)
    assert result.status is Status.BUDGET
    assert sum(operator.forward) + sum(operator.transposed) == result.work.products <= budget
    assert bool(result.S.isfinite().all())
    assert "max_products" in result.advice


def test_zero_operators() -> None:
    for method in ("lanczos", "dense"):
        none = svd(torch.zeros(30, 20), threshold=0.1, method=method, certify="complete")
        assert none.converged
        assert none.S.shape == (0,)
        assert none.certificate.completeness.complete
        assert svd(torch.zeros(30, 20), energy=0.9, method=method).converged


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 3, "threshold": 0.1}, "k and threshold are given"),
        ({"threshold": 0.1, "energy": 0.9}, "threshold and energy are given"),
        ({"k": 2, "threshold": 0.1, "energy": 0.9}, "give one of them"),
        ({"threshold": 0.0}, "finite number above 0"),
        ({"threshold": float("inf")}, "finite number above 0"),
        ({"threshold": "high"}, "finite number above 0"),
        ({"threshold": 10**400}, "finite number above 0"),
        ({"threshold": 10**5000}, "finite number above 0"),
        ({"energy": 1.0}, "between 0 and 1"),
        ({"energy": -0.1}, "between 0 and 1"),
        ({"threshold": 0.1, "method": "randomized"}, "choose 'lanczos' or 'dense'"),
        ({"energy": 0.1, "method": "shared_basis"}, "choose 'lanczos' or 'dense'"),
        ({"energy": 0.1, "max_products": 17}, "give 18 or more"),
    ],
)
def test_options_that_cannot_be_honoured(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        svd(torch.eye(20), **options)
    assert "\n" not in str(refused.value)


def test_eight_by_default() -> None:
    assert len(svd(matrix(spectrum("root", 40), (40, 40))).S) == 8
    assert len(svd(matrix(spectrum("root", 5), (5, 9))).S) == 5


def test_a_threshold_within_rounding_of_a_value_is_not_called_complete() -> None:
    """Written out or not: what rounding may have put on its side of the threshold is not claimed to lie there."""
    for threshold, complete in ((0.9999, True), (0.99999999, False)):
        below = svd(torch.diag(torch.tensor([1.0, 1.0, 0.5])), threshold=threshold, certify="complete", method="dense")
        assert len(below.S) == 2 and below.certificate.completeness.complete is complete
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(200, 200, generator=generator, dtype=torch.float64)).Q for _ in range(2))
    values = torch.cat([1 + 1e-8 * torch.randn(20, generator=generator, dtype=torch.float64), torch.full((180,), 0.1)])
    close = svd(((u * values) @ v.T).float(), threshold=1.0, certify="complete", method="dense")
    assert not close.certificate.completeness.complete
    rank_1 = torch.outer(torch.arange(1.0, 10, dtype=torch.float64), torch.arange(1.0, 8, dtype=torch.float64))
    assert not svd(rank_1, threshold=1e-15, certify="complete", method="dense").certificate.completeness.complete
    assert svd(rank_1, threshold=1e-3, certify="complete", method="dense").certificate.completeness.complete


@pytest.mark.parametrize("method", ["lanczos", "dense"])
def test_no_value_that_rounds_to_the_threshold_is_returned(method: str) -> None:
    A = torch.linalg.qr(torch.randn(28, 14, generator=torch.Generator().manual_seed(0)))[0].T
    for seed in range(5):
        result = svd(A, threshold=1.000000001, method=method, seed=seed)
        assert (result.S.double() > 1.000000001).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_share_of_the_energy_holds_rounding(dtype: torch.dtype) -> None:
    """Where triplets hold nearly all, the rounding of the products is what is left."""
    A = matrix(np.array([1.0, 0.5, 0.2]), (60, 60)).to(dtype)
    for seed in range(10):
        result = svd(A, energy=0.98, method="lanczos", tol=1e-2, seed=seed)
        share = float(torch.linalg.svdvals(A.double())[: len(result.S)].square().sum() / A.double().square().sum())
        assert result.energy[0] <= share <= result.energy[1]


def test_the_share_of_everything_is_1_though_products_are_rounded() -> None:
    """In half precision forward and transposed products give sums of squares that differ by their rounding."""
    for seed in range(40):
        A = torch.as_tensor(np.random.default_rng(seed).standard_normal((12, 1))).half()
        low, high = svd(A, energy=0.9, block=6, tol=1e-2, method="lanczos", seed=seed).energy
        assert low <= 1.0 <= high
