"""A probe ends with the product that completes its claim, goes on while that pays, and gives up where nothing can."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from detjac_lanczos.solvers import Status, SVDResult, attempt, svd
from detjac_lanczos.solvers.factorisation import RitzTriplets
from detjac_lanczos.solvers.reprobe import measure_completeness
from tests.solvers.spectra import matrix, spectrum
from tests.solvers.test_completeness import blind, claim_of

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = matrix(spectrum("root", 60), (80, 60))
NEAR_THE_FLOOR = matrix(np.r_[5e3, 1.0, 0.9, 0.8, np.linspace(0.5, 0.1, 46)], (60, 50)).float()


def claimed(A: torch.Tensor, k: int | None = None, **options) -> SVDResult:
    return svd(A, k, method="lanczos", certify="complete", **options)


@pytest.mark.parametrize(
    ("A", "options"),
    [
        (ROOT, {"k": 3}),
        (ROOT, {"threshold": 0.48}),
        (NEAR_THE_FLOOR, {"k": 4, "tol": 0.1}),
        (NEAR_THE_FLOOR, {"threshold": 0.7, "tol": 0.1}),
        (NEAR_THE_FLOOR, {"threshold": 0.72, "tol": 0.1}),
    ],
    ids=["k", "threshold", "k near the floor", "threshold near the floor", "higher threshold"],
)
def test_a_probe_ends_with_the_product_that_completes_the_claim(A: torch.Tensor, options: dict) -> None:
    """From one product fewer of the same vector the claim cannot be made."""
    result = claimed(A, **options)
    claim, guards = claim_of(result), result.guards
    assert claim.complete and guards is not None
    (steps,) = claim.steps
    parts = zip((result.U, result.S, result.V), (guards.U, guards.S, guards.V), strict=True)
    given = [[torch.cat(both, dim=-1)] for both in parts]
    for made, complete in ((steps - 1, False), (steps, True)):
        again = replace(claim, steps=(made,))
        (found,) = measure_completeness([A], *given, [again], tol=options.get("tol", 1e-3), passes=result.work.passes)
        assert found.complete == complete


def test_no_more_products_are_spent_than_a_share_of_those_of_the_search_where_the_budget_is_not_given() -> None:
    """70 would complete the claim: more than 0.6 of what the search took. A budget is spent to the last product."""
    A = matrix(np.linspace(1.0, 0.5, 120), (120, 120))
    plain = claimed(A, 4)
    searched = plain.work.products - plain.work.probe_products
    assert claim_of(plain).steps == (24,) and not claim_of(plain).complete
    (needed,) = claim_of(claimed(A, 4, max_products=1000)).steps
    assert 0.6 * searched < needed < searched
    assert claim_of(claimed(A, 4, max_products=searched + 7)).steps == (7,)


def test_a_claim_in_reach_of_a_share_of_the_search_is_completed() -> None:
    more = claimed(matrix(np.linspace(1.0, 0.1, 80), (80, 80)), 8)
    assert claim_of(more).complete
    assert 24 < more.work.probe_products <= 0.6 * (more.work.products - more.work.probe_products)


def test_a_value_above_the_threshold_by_less_than_the_tolerance_is_missed(monkeypatch) -> None:
    A = matrix(spectrum("root", 90), (120, 90))
    left, exact, right = torch.linalg.svd(A, full_matrices=False)
    blind(monkeypatch, [left[:, 4], right[4]])
    result = claimed(A, threshold=float(exact[4]) * (1 - 5e-3), tol=1e-2)
    assert len(result.S) == 5 and claim_of(result).number == 1


def test_a_copy_within_the_tolerance_of_the_last_value_is_worth_another_claim(monkeypatch) -> None:
    A = matrix(np.r_[3.0, 2.0, 1.0, 0.997, np.linspace(0.3, 0.1, 40)], (60, 44))
    left, _, right = torch.linalg.svd(A, full_matrices=False)
    blind(monkeypatch, [left[:, 3], right[3]])
    near, far = (claim_of(claimed(A, 3, tol=tol)) for tol in (1e-2, 1e-3))
    assert near.complete and near.cluster and near.number == 1
    assert not far.complete and not far.cluster and far.number == 0


def test_where_the_budget_ends_before_a_copy_has_converged_those_asked_for_have(monkeypatch) -> None:
    A = matrix(np.r_[3.0, 2.0, 1.0, 0.997, np.linspace(0.3, 0.1, 40)], (60, 44))
    left, _, right = torch.linalg.svd(A, full_matrices=False)
    blind(monkeypatch, [left[:, 3], right[3]])
    searched = svd(A, 3, tol=1e-2, method="lanczos").work.products
    result = claimed(A, 3, tol=1e-2, max_products=searched + 6)
    assert result.status is Status.CONVERGED and len(result.S) == 3
    assert result.certificate is not None and result.certificate.completeness is None


def test_values_just_below_a_threshold_and_zeros_are_no_copies() -> None:
    A = matrix(np.r_[3.0, 2.0, 1.0, 1.0, 1.0, np.linspace(0.3, 0.1, 40)], (60, 45))
    assert claim_of(claimed(A, threshold=1.005, tol=1e-2, block=1)).number == 0
    assert claim_of(claimed(torch.zeros(30, 20), 5)).number == 0


def test_no_more_claims_are_made_than_may_share_delta(monkeypatch) -> None:
    monkeypatch.setattr(attempt, "MOST_CLAIMS", 1)
    A = matrix(spectrum("root", 40), (50, 40))
    left, exact, right = torch.linalg.svd(A, full_matrices=False)
    blind(monkeypatch, [left[:, 1], right[1]])
    result = claimed(A, 3)
    assert claim_of(result).number == 0 and not claim_of(result).complete
    assert claim_of(result).upper[1] >= exact[1] > result.S[1]


def test_an_exhausted_vector_is_followed_by_another_while_the_bound_is_loose_or_the_claim_in_reach() -> None:
    """Beside equal values a vector is exhausted by its second product, beside zeros by its first."""
    within = claim_of(claimed(matrix(np.r_[1.5, 1.2, np.ones(48)], (50, 50)).float(), 2, delta=1e-5))
    assert within.complete and within.steps == (2, 2)
    loose, tight = (claimed(torch.eye(50, dtype=dtype), 8) for dtype in (torch.float32, torch.float64))
    assert claim_of(loose).steps == (2, 2) and claim_of(loose).upper[8] <= 1.1
    assert claim_of(tight).steps == (2,) and tight.work.probe_products == 4
    nothing = claim_of(claimed(matrix(np.array([3.0, 2.0, 1.0]), (30, 8)), 5, delta=0.5))
    assert nothing.steps == (1,) and nothing.tau <= 2 * nothing.floor


@pytest.mark.parametrize(("residual", "count"), [(0.19, 5), (0.21, 4)])
@pytest.mark.parametrize("side", [0, 1])
def test_guards_are_taken_up_to_a_residual_of_a_tenth_of_the_last_value(side: int, residual: float, count: int) -> None:
    """Of either side, here of the second guard. The last triplet known is none: it shows what they leave."""
    values = np.array([4.0, 3.0, 2.0, 1.9, 1.8, 0.2])
    known, off = torch.eye(6, 12, dtype=torch.float64), torch.zeros(6, 12, dtype=torch.float64)
    off[4, 11] = residual
    plain = torch.from_numpy(values)[:, None] * known
    residuals = [off, 0 * off] if side == 0 else [0 * off, off]
    norms = torch.stack([part.norm(dim=1) for part in residuals], dim=1).numpy()
    triplets = RitzTriplets(values, known, known, plain + residuals[1], plain + residuals[0], *residuals, norms)
    assert attempt.guarded(triplets, 1.001 * values[:3], 2.0, 1e-9)[0] == count
