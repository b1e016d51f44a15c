"""COMPLETE and BOUND are wrong no more often than δ, and what a probe finds is found for good."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom

from detjac_lanczos.errors import InputError, OperatorError
from detjac_lanczos.solvers import Status, SVDResult, basis, copies, start, strand, svd, svd_batch, widening
from detjac_lanczos.solvers.completeness import Completeness
from detjac_lanczos.solvers.probe import share_of
from detjac_lanczos.solvers.reprobe import measure_completeness
from tests.solvers.spectra import Recorder, matrix, spectrum

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["geometric", "harmonic", "root", "spike", "flat", "cluster", "multiple", "staircase", "graded", "gap"]
LOW_RANK = {"rank 3": [3.0, 2.0, 1.0], "rank k": list(np.linspace(2.0, 1.0, 8)), "pairs": list(np.repeat([4, 3, 2], 4))}
SIZES = [((64, 64), 64), ((200, 100), 100), ((70, 140), 70)]


def values_of(name: str, size: int) -> np.ndarray:
    return np.r_[LOW_RANK[name], np.zeros(size - len(LOW_RANK[name]))] if name in LOW_RANK else spectrum(name, size)


def claim_of(result: SVDResult) -> Completeness:
    assert result.certificate is not None
    assert result.certificate.completeness is not None
    return result.certificate.completeness


def holds(result: SVDResult, exact: np.ndarray) -> bool:
    """Whether every bound of the claim does."""
    upper = claim_of(result).upper
    return bool((np.r_[exact, 0.0][: len(upper)] <= np.array(upper)).all())


def is_the_leading_set(result: SVDResult, exact: np.ndarray, tol: float) -> bool:
    """Whether the values are σ_1, …, σ_k to the tolerance, or to rounding."""
    found = result.S.double().numpy()
    allowed = tol * found + claim_of(result).rounding
    return bool((np.abs(found - exact[: len(found)]) <= allowed).all())


@pytest.mark.parametrize("name", [*NAMES, *LOW_RANK])
@pytest.mark.parametrize("k", [1, 8])
def test_claims_fail_no_more_often_than_delta(name: str, k: int) -> None:
    """At δ = 0.05, over sizes and seeds; every claim encloses all of its values or counts as failed."""
    failures, false, trials, delta = 0, 0, 0, 0.05
    for shape, size in SIZES:
        for seed in range(6):
            A = matrix(values_of(name, size), shape, seed)
            exact = torch.linalg.svdvals(A).numpy()
            result = svd(A, k, method="lanczos", block=2, seed=seed, certify="complete", delta=delta)
            claim = claim_of(result)
            assert bool((exact[:k] >= result.S.numpy() - claim.rounding).all())
            failures += not holds(result, exact)
            false += claim.complete and not is_the_leading_set(result, exact, 1e-3)
            trials += 1
    assert failures <= binom.ppf(1 - 1e-5, trials, delta)
    assert false <= binom.ppf(1 - 1e-5, trials, delta)


def blind(monkeypatch: pytest.MonkeyPatch, hidden: list[torch.Tensor]) -> None:
    """Take the hidden directions out of every random vector that a search draws; those of probes keep them."""
    draw = basis.random_rows

    def drawn(count, model, generator):
        rows = draw(count, model, generator)
        for direction in hidden:
            if direction.shape[0] == rows.shape[1]:
                rows = rows - torch.outer(rows @ direction.to(rows.dtype), direction.to(rows.dtype))
        return rows

    for module in (basis, start, strand):
        monkeypatch.setattr(module, "random_rows", drawn)


@pytest.mark.parametrize(
    ("place", "dtype"), [(0, torch.float64), (3, torch.float64), (7, torch.float64), (3, torch.float32)]
)
def test_a_hidden_value_is_found_locked_and_claimed(monkeypatch, place: int, dtype: torch.dtype) -> None:
    """The search cannot see one direction: residuals are small, the set is wrong, and only the probe knows."""
    A = matrix(spectrum("root", 90), (120, 90)).to(dtype)
    left, exact, right = (part.double() for part in torch.linalg.svd(A.double(), full_matrices=False))
    blind(monkeypatch, [left[:, place], right[place]])
    fooled = svd(A, 8, tol=1e-2, method="lanczos")
    assert fooled.status is Status.CONVERGED
    assert float((fooled.S.double() - exact[:8]).abs().max()) > 0.01
    for seed in range(5):
        result = svd(A, 8, tol=1e-2, method="lanczos", certify="complete", seed=seed)
        claim = claim_of(result)
        assert claim.complete, result.certificate
        assert claim.number >= 1
        assert is_the_leading_set(result, exact.numpy(), 1e-2)
        assert holds(result, exact.numpy())


def test_products_that_end_after_a_find_are_counted(monkeypatch) -> None:
    """The probe finds the hidden value, and nothing is left to converge it with: no claim, but an honest count."""
    A = matrix(spectrum("root", 90), (120, 90))
    left, _, right = torch.linalg.svd(A, full_matrices=False)
    blind(monkeypatch, [left[:, 2], right[2]])
    needed = svd(A, 6, method="lanczos").work.products
    result = svd(A, 6, method="lanczos", certify="complete", max_products=needed + 8)
    assert result.status is Status.BUDGET
    assert result.work.products <= needed + 8
    assert 0 < result.work.probe_products <= 8
    assert result.certificate.completeness is None


def test_several_hidden_values_are_all_found(monkeypatch) -> None:
    A = matrix(spectrum("geometric", 80), (80, 95))
    left, exact, right = torch.linalg.svd(A, full_matrices=False)
    blind(monkeypatch, [*left[:, :3].T, *right[:3]])
    result = svd(A, 6, method="lanczos", certify="complete")
    assert claim_of(result).complete
    assert is_the_leading_set(result, exact.numpy(), 1e-3)
    assert result.work.probe_products == claim_of(result).products > sum(claim_of(result).steps)


def test_copies_beyond_width_one_are_never_claimed_away(monkeypatch) -> None:
    """Each value three times, a block of one column, the search's own doubts switched off: sets are wrong, claims not.

    Fewer than δ of the claims may be false, and the probes must find what makes the sets right.
    """
    monkeypatch.setattr(copies.CopyProbe, "_called_for", lambda self, drawn: False)
    monkeypatch.setattr(widening.Widening, "goes_on", lambda self, triplets, tolerated, **rest: False)
    exact = np.repeat(1 / np.sqrt(np.arange(1, 21)), 3)
    plain, false, complete, trials = 0, 0, 0, 40
    for seed in range(trials):
        A = matrix(exact, (60, 60), seed)
        fooled = svd(A, 6, method="lanczos", block=1, seed=seed)
        plain += float((fooled.S - torch.from_numpy(exact[:6])).abs().max()) > 1e-2
        result = svd(A, 6, method="lanczos", block=1, seed=seed, certify="complete", delta=0.05)
        complete += claim_of(result).complete
        false += claim_of(result).complete and not is_the_leading_set(result, exact, 1e-3)
    assert plain >= trials / 2
    assert complete >= trials / 2
    assert false <= binom.ppf(1 - 1e-5, trials, 0.05)


@pytest.mark.parametrize("shape", [(12, 8), (8, 12)])
@pytest.mark.parametrize("method", ["lanczos", "dense"])
def test_no_value_is_bounded_that_the_shape_has_no_room_for(shape: tuple[int, int], method: str) -> None:
    for A in (np.outer(*(np.arange(1.0, d + 1) for d in shape)), matrix(spectrum("root", 8), shape).numpy()):
        result = svd(A, 8, method=method, certify="complete")
        claim, exact = claim_of(result), np.linalg.svd(A, compute_uv=False)
        assert "COMPLETE: these are σ_1..σ_8" in result.certificate.line
        assert claim.upper[8] == 0.0
        assert holds(result, exact)
    short = replace(claim, complete=False)
    assert short.line.startswith("BOUND σ_8 ≤ ")


def test_a_cluster_across_k_is_told() -> None:
    """Beyond the reach of guards nothing is index-exact; within it the values are, and the cluster is named."""
    far = svd(torch.eye(50, dtype=torch.float64), 8, method="lanczos", certify="complete")
    assert not claim_of(far).complete
    assert claim_of(far).cluster
    assert "σ_8 and σ_9 in one cluster" in claim_of(far).line
    assert "closer than the tolerance" in far.advice
    near = svd(matrix(spectrum("multiple", 100), (100, 100)), 8, method="lanczos", certify="complete")
    assert claim_of(near).cluster
    assert claim_of(near).complete == is_the_leading_set(near, spectrum("multiple", 100), 1e-3)


def test_advice_names_a_gap() -> None:
    values = np.r_[3.0, 2.9, 2.8, np.full(57, 1.0)]
    result = svd(matrix(values, (60, 60)), 5, method="lanczos", certify="complete")
    assert not claim_of(result).complete
    assert "ask for k = 3" in result.advice
    assert claim_of(svd(matrix(values, (60, 60)), 3, method="lanczos", certify="complete")).complete


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_scales_and_precisions(scale: float, dtype: torch.dtype) -> None:
    """The bounds hold for the operator as it is stored; what precision can say is added, and scales with it."""
    A = (matrix(spectrum("harmonic", 80), (80, 100)) * scale).to(dtype)
    exact = torch.linalg.svdvals(A.double()).numpy()
    for seed in range(3):
        result = svd(A, 6, tol=1e-2, method="lanczos", certify="complete", seed=seed)
        assert holds(result, exact)
        assert claim_of(result).rounding >= torch.finfo(dtype).eps * exact[0]
        assert claim_of(result).complete == (dtype is not torch.bfloat16)


def test_rounding_forbids_completeness() -> None:
    """In bfloat16 beside a value of 20, nothing can be said of values near 0.35."""
    A = matrix(spectrum("spike", 80), (80, 80)).to(torch.bfloat16)
    result = svd(A, 8, tol=0.1, method="lanczos", certify="complete")
    claim = claim_of(result)
    assert claim.rounding > claim.sigma_k
    assert not claim.complete
    assert holds(result, torch.linalg.svdvals(A.double()).numpy())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_exactly_low_rank_operator(dtype: torch.dtype) -> None:
    """Outside of its range there is nothing but rounding: more than one random vector makes the bound small."""
    A = matrix(values_of("rank k", 60), (80, 60)).to(dtype)
    full = svd(A, 8, method="lanczos", certify="complete")
    assert claim_of(full).complete
    beyond = claim_of(svd(A, 10, method="lanczos", certify="complete"))
    assert not beyond.complete
    assert beyond.upper[10] <= 1e4 * torch.finfo(dtype).eps
    assert len(beyond.steps) > 1
    assert claim_of(svd(torch.zeros(30, 20, dtype=dtype), 5, method="lanczos", certify="complete")).complete


def test_every_vector_of_a_claim_is_sent_again() -> None:
    """Six vectors, each exhausted at once, bound what the first alone does not."""
    A = matrix(values_of("rank k", 60), (80, 60))
    found = svd(A, 10, method="lanczos", certify="complete")
    claim = claim_of(found)
    assert claim.steps == (1,) * 6

    def again(steps: tuple[int, ...]) -> Completeness:
        given = [found.U], [found.S], [found.V], [replace(claim, steps=steps)]
        return measure_completeness([A], *given, tol=1e-3, passes=found.work.passes)[0]

    assert again(claim.steps).tau == pytest.approx(claim.tau)
    assert again(claim.steps).steps == claim.steps
    assert again((1,)).tau > 1e3 * claim.tau


@pytest.mark.parametrize(
    ("method", "sound"), [("lanczos", 0), ("lanczos", 1), ("lanczos", 3), ("dense", 0), ("dense", 1)]
)
def test_products_that_are_not_finite_make_no_claim_again(method: str, sound: int) -> None:
    """Those of the triplets, then of a probe; or of the rows of a matrix, then of the vector that it is compared by."""
    A = matrix(values_of("rank k", 60), (80, 60))
    found = svd(A, 10, method=method, certify="complete")

    class Late(Recorder):
        def spoil(self, product):
            return product * math.nan if len(self.forward) + len(self.transposed) > sound else product

    given = [found.U], [found.S], [found.V], [claim_of(found)]
    with pytest.raises(OperatorError, match=r"operator 0, (forward|transposed) pass \d: the product holds NaN"):
        measure_completeness([Late(A)], *given, tol=1e-3, passes=found.work.passes)


@pytest.mark.parametrize("method", ["lanczos", "dense"])
def test_all_triplets_leave_nothing_to_probe(method: str) -> None:
    result = svd(matrix(spectrum("root", 12), (12, 20)), 12, method=method, certify="complete")
    assert claim_of(result).complete
    assert result.work.probe_products == 0
    assert claim_of(result).tau == 0.0


def test_the_dense_method_claims_with_certainty() -> None:
    A = matrix(spectrum("root", 40), (50, 40))
    result = svd(A, 5, method="dense", certify="complete")
    assert claim_of(result).delta == 0.0
    assert result.certificate.line.endswith("COMPLETE: these are σ_1..σ_5 (the whole matrix was seen)")
    assert holds(result, spectrum("root", 40))
    assert result.work.products == svd(A, 5, method="dense").work.products


MATRICES = [matrix(spectrum(name, 60), (70, 60), seed) for seed, name in enumerate(["geometric", "spike", "root"])]


def test_company_changes_nothing() -> None:
    together = svd_batch(MATRICES, 5, method="lanczos", certify="complete", seed=2)
    for A, result in zip(MATRICES, together, strict=True):
        alone = claim_of(svd(A, 5, method="lanczos", certify="complete", seed=2))
        claim = claim_of(result)
        assert claim.steps == alone.steps
        assert claim.tau == pytest.approx(alone.tau, rel=1e-9)
        assert claim.line == alone.line


def test_probes_share_passes() -> None:
    operators = [Recorder(A) for A in MATRICES]
    results = svd_batch(operators, 5, method="lanczos", certify="complete")
    plain = svd_batch(MATRICES, 5, method="lanczos")
    for operator, result, other in zip(operators, results, plain, strict=True):
        assert sum(operator.forward) == result.work.products_forward
        assert sum(operator.transposed) == result.work.products_transposed
        assert result.work.products - result.work.probe_products == other.work.products
        assert result.work.probe_products == claim_of(result).products <= 24
        torch.testing.assert_close(result.S, other.S, rtol=0, atol=1e-14)


def test_the_callback_sees_probes() -> None:
    """No operator counts as finished before its claim is made."""
    seen = []
    svd_batch(MATRICES, 5, method="lanczos", certify="complete", callback=seen.append)
    finished = [progress.finished for progress in seen]
    assert finished == sorted(finished)
    assert finished.count(3) == 1
    assert [progress.passes for progress in seen] == list(range(1, len(seen) + 1))


def test_the_same_seed_gives_the_same_claim() -> None:
    first, again, other = (
        claim_of(svd(MATRICES[1], 5, method="lanczos", certify="complete", seed=s)) for s in (4, 4, 5)
    )
    assert first == again
    assert first.tau != other.tau
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    svd(MATRICES[1], 5, method="lanczos", certify="complete")
    assert torch.equal(torch.rand(1), expected)


def test_advice_is_a_smaller_tol_where_residuals_leave_no_room_for_what_is_left() -> None:
    """No budget completes the claim; the tolerance that is advised does."""
    values = np.r_[1, 0.97, 0.9, 0.89, 0.85, 0.849, 0.8, 0.79, np.linspace(0.785, 0.5, 72)]
    A = torch.from_numpy(np.linalg.qr(np.random.default_rng(0).standard_normal((80, 80)))[0] * values)
    for budget in (None, 5000):
        open_ = svd(A, 5, method="lanczos", certify="complete", max_products=budget)
        assert not claim_of(open_).complete
        assert "ask for a smaller tol" in open_.advice and "max_products" not in open_.advice
    assert claim_of(svd(A, 5, tol=1e-5, method="lanczos", certify="complete")).complete
    spent = svd(A, 5, tol=1e-5, method="lanczos", certify="complete", max_products=80)
    assert "give more products by max_products" in spent.advice and "smaller tol" not in spent.advice


@pytest.mark.parametrize("goal", [{"k": 4, "tol": 1e-3}, {"k": 4, "tol": 1e-2}, {"threshold": 0.9, "tol": 1e-2}])
def test_no_smaller_tol_is_advised_where_residuals_are_rounding(goal: dict[str, float]) -> None:
    values = np.sort(np.random.default_rng(0).uniform(size=60))[::-1]
    result = svd(matrix(values, (60, 80)).bfloat16(), **goal, method="lanczos", certify="complete")
    assert not claim_of(result).complete
    assert "smaller tol" not in result.advice and "in a higher precision" in result.advice


def test_where_a_probe_found_a_value_and_the_budget_left_no_other_that_is_said() -> None:
    A = matrix(np.array([1.0, 1.0, 0.97] + [0.3] * 41), (50, 44))
    start = torch.linalg.svd(A).Vh[1:3].T
    searched = {"start": start, "method": "lanczos", "block": 3, "tol": 0.05}
    result = svd(A, 2, **searched, certify="complete", delta=0.1, max_products=12)
    assert result.work.probe_products == 4 and result.certificate.completeness is None
    assert "A probe found one more value for the search, and max_products left no product" in result.advice
    assert "no probe was made" not in result.advice


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("largest", "threshold"), [(1.0, 1e308), (0.0, 1e300), (0.0, 5e-324), (0.0, 1e-310)], ids=str)
def test_thresholds_at_the_ends_of_the_numbers_are_claimed_without_a_warning(largest: float, threshold: float) -> None:
    A = matrix(largest * 0.8 ** np.arange(60), (80, 60))
    result = svd(A, threshold=threshold, method="lanczos", certify="complete")
    assert len(result.S) == 0 and claim_of(result).complete == (threshold > 1.0)


@pytest.mark.parametrize("spare", [0, 1, 7, 100])
def test_the_budget_is_kept_to_the_product(spare: int) -> None:
    A = matrix(spectrum("root", 150), (150, 150))
    needed = svd(A, 6, method="lanczos").work.products
    result = svd(A, 6, method="lanczos", certify="complete", max_products=needed + spare)
    assert result.status is Status.CONVERGED
    assert result.work.products <= needed + spare
    if not spare:
        assert result.certificate.completeness is None
        assert "no probe was made" in result.advice
    else:
        assert result.work.probe_products == min(spare, claim_of(result).products)
        assert holds(result, spectrum("root", 150))
        assert claim_of(result).complete == (spare == 100)
    if 0 < spare < 100:
        assert "max_products" in result.advice


def test_products_are_spent_where_they_pay() -> None:
    """24 in any case; more only while completeness is in reach of 0.6 of the search, or of the caller's budget."""
    A = matrix(np.linspace(1.0, 0.5, 200), (200, 200))
    hopeless = svd(A, 4, method="lanczos", certify="complete")
    assert not claim_of(hopeless).complete
    assert claim_of(hopeless).steps == (24,)
    within = claim_of(svd(A, 4, method="lanczos", certify="complete", max_products=1000))
    assert within.complete
    assert within.products > 24


def test_a_probe_that_is_not_finite_ends_the_solve() -> None:
    operator = Recorder(MATRICES[0])
    searched = svd(operator, 5, method="lanczos").work.passes

    class Late(Recorder):
        def spoil(self, product):
            return product * math.nan if len(self.forward) + len(self.transposed) > searched + 2 else product

    results = svd_batch([MATRICES[1], Late(MATRICES[0])], 5, method="lanczos", certify="complete")
    assert results[1].status is Status.NOT_FINITE
    assert results[1].work.probe_products and "probing for them broke off" in results[1].advice
    assert claim_of(results[0]).complete


def test_guards_are_further_triplets() -> None:
    result = svd(MATRICES[2], 5, method="lanczos", certify="complete")
    guards, claim = result.guards, claim_of(result)
    assert guards is not None
    assert guards.U.shape == (70, claim.guards)
    assert guards.V.shape == (60, claim.guards)
    for own, further in ((result.U, guards.U), (result.V, guards.V)):
        both = torch.cat([own, further], dim=1)
        assert float((both.T @ both - torch.eye(both.shape[1])).abs().max()) <= 1e-12
    residuals = (MATRICES[2] @ guards.V - guards.U * guards.S).norm(dim=0)
    assert float(residuals.max()) <= 0.1 * float(result.S[-1])
    assert float(guards.S.max()) <= float(result.S[-1])


def test_shares_of_delta_never_exceed_it() -> None:
    shares = [share_of(1e-6, number) for number in range(30)]
    assert sum(shares) <= 1e-6
    assert shares[0] == pytest.approx(9e-7)


def made_of(scale: float = 1.0, **changes) -> Completeness:
    """Two triplets and a guard, all numbers in units of 1 / scale."""
    numbers = {"tau": 1.5, "beyond": 1.9, "rounding": 0.1, "floor": 0.05} | changes
    scaled = {name: numbers.pop(name) * scale for name in ("tau", "beyond", "rounding", "floor")}
    values, upper = ([scale * number for number in of] for of in ([4.0, 3.0, 2.0], [4.1, 3.1, 2.2, 1.6]))
    plain = {"k": 2, "index_exact": False, "tol": 1e-2, "threshold": None, "seed": 7} | numbers
    return Completeness.of(values, upper, scale=scale, **scaled, **plain)


@pytest.mark.parametrize("threshold", [None, 2.5])
@pytest.mark.parametrize("scale", [2.0**-40, 2.0**40])
def test_a_claim_is_in_the_units_of_the_operator(threshold: float | None, scale: float) -> None:
    plain = made_of(threshold=threshold)
    assert made_of(scale, threshold=threshold) == plain
    assert (plain.sigma_1, plain.sigma_k, plain.upper, plain.tau) == (4.0, 3.0, (4.1, 3.1, 2.2, 1.6), 1.5)
    assert (plain.rounding, plain.floor, plain.guards, plain.threshold) == (0.1, 0.05, 1, threshold)
    assert (plain.delta, plain.number, plain.steps, plain.products) == (0.0, 0, (), 0)


def test_a_threshold_parts_bounds_from_values_rounding_included() -> None:
    found = {t: made_of(threshold=t).complete for t in (2.19, 2.2, 2.89, 2.91)}
    assert found == {2.19: False, 2.2: True, 2.89: True, 2.91: False}
    assert [made_of(threshold=t, k=0).complete for t in (4.0, 4.1)] == [False, True]


def test_neighbours_within_the_tolerance_are_one_cluster_above_the_floor() -> None:
    assert [made_of(beyond=beyond, tol=0.5).cluster for beyond in (1.49, 1.5)] == [False, True]
    assert [made_of(beyond=3.0, floor=floor).cluster for floor in (2.9, 3.0)] == [True, False]
    assert [made_of(beyond=2.49, threshold=2.5, tol=tol).cluster for tol in (1e-3, 1e-2)] == [False, True]


PLAIN = {
    "threshold": None,
    "k": 8,
    "guards": 4,
    "delta": 1e-6,
    "seed": 0,
    "number": 0,
    "steps": (22,),
    "products": 22,
    "tau": 0.8,
    "upper": (3.0,) * 8 + (1.183,) + (1.0,) * 4,
    "rounding": 0.0,
    "complete": True,
    "cluster": False,
    "sigma_1": 3.0,
    "sigma_k": 1.0,
    "floor": 1e-9,
}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "COMPLETE: these are σ_1..σ_8 (δ = 1e-6, 22 products, 4 guards)"),
        ({"complete": False}, "BOUND σ_9 ≤ 1.19 σ_8 (δ = 1e-6, 22 products, 4 guards)"),
        ({"complete": False, "guards": 1, "delta": 0.05}, "BOUND σ_9 ≤ 1.19 σ_8 (δ = 0.05, 22 products, 1 guard)"),
        (
            {"complete": False, "guards": 0, "cluster": True},
            "BOUND σ_9 ≤ 1.19 σ_8, σ_8 and σ_9 in one cluster (δ = 1e-6, 22 products)",
        ),
        ({"k": 1, "guards": 0}, "COMPLETE: this is σ_1 (δ = 1e-6, 22 products)"),
        ({"complete": False, "sigma_k": 0.0}, "BOUND σ_9 ≤ 0.40 σ_1 (δ = 1e-6, 22 products, 4 guards)"),
        ({"complete": False, "sigma_k": 1e-4}, "BOUND σ_9 ≤ 1.2e4 σ_8 (δ = 1e-6, 22 products, 4 guards)"),
    ],
)
def test_the_line(changes: dict, line: str) -> None:
    assert Completeness(**(PLAIN | changes)).line == line


@pytest.mark.parametrize(
    "options",
    [
        {"certify": "complete", "method": "randomized"},
        {"certify": "Complete"},
        {"certify": "complete", "delta": 0.0},
        {"certify": "complete", "delta": 1e-15},
        {"certify": "complete", "delta": 1.0},
        {"delta": float("nan")},
        {"delta": "small"},
    ],
)
def test_options_that_cannot_be_honoured(options: dict) -> None:
    with pytest.raises(InputError) as refused:
        svd(torch.eye(20), 3, **options)
    assert "\n" not in str(refused.value)
