"""A probe sends random vectors outside of known triplets, and claims no more than they and rounding allow."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from detjac_lanczos.solvers.attempt import stated
from detjac_lanczos.solvers.completeness import Completeness
from detjac_lanczos.solvers.operator import Direction
from detjac_lanczos.solvers.overlap import log_overlap
from detjac_lanczos.solvers.probe import Deflation, Probe, share_of
from detjac_lanczos.solvers.rounding import rounding_of
from tests.solvers.spectra import matrix, spectrum

A = matrix(spectrum("root", 50), (60, 50))
KNOWN = 4
EPS = 2.0**-52
DELTA = 0.05
FLOOR = 1e-3


def leading(A: torch.Tensor, *, stretch: float = 1.0) -> Deflation:
    """Return the leading triplets of a matrix whose transpose is ``stretch`` times as long."""
    U, S, Vh = torch.linalg.svd(A, full_matrices=False)
    U, S, V = U[:, :KNOWN].T, S[:KNOWN], Vh[:KNOWN]
    return Deflation.of(S.numpy(), U, V, V @ A.T, stretch * U @ A)


def probed(A: torch.Tensor, steps: int, deflation: Deflation | None = None, number: int = 0) -> Probe:
    probe = Probe(deflation or leading(A), tuple(A.shape), eps=EPS, seed=0, number=number)
    for _ in range(steps):
        _step(probe)
    return probe


def _step(probe: Probe) -> None:
    probe.absorb(probe.row @ (A.T if probe.direction is Direction.FORWARD else A))


def claimed(probe: Probe, *, tol: float = 1e-3, floor: float = FLOOR, threshold: float | None = None) -> Completeness:
    return stated(probe, k=KNOWN, delta=DELTA, tol=tol, floor=floor, underflow=0.0, scale=1.0, threshold=threshold)


def test_gamma_is_of_the_dimensions_that_are_left_and_each_vector_is_a_claim() -> None:
    """All of p vectors are wrong together: at δ^(1/p) each, of a δ that every vector before it has spent from."""
    probe = probed(A, 6, number=1)
    assert probe.log_gamma(DELTA) == log_overlap(50 - KNOWN, share_of(DELTA, 1))
    probe.draw()
    assert probe.log_gamma(DELTA) == log_overlap(50 - KNOWN, share_of(DELTA, 2) ** 0.5)


def test_no_coefficient_is_smaller_than_what_rounding_can_do() -> None:
    """Of a matrix of rank 4, its four triplets leave nothing but rounding."""
    known = leading(A)
    low = (known.left.T * torch.from_numpy(known.values)) @ known.right
    probe = Probe(known, tuple(low.shape), eps=EPS, seed=0, number=0)
    probe.absorb(probe.row @ low.T)
    assert probe.coefficients == [rounding_of(EPS, float(known.values[0]))]
    assert probe.row is None


def test_what_is_sent_is_orthonormal_and_outside_of_the_triplets() -> None:
    probe = probed(A, 30)
    for way, known in ((Direction.FORWARD, probe.deflation.right), (Direction.TRANSPOSED, probe.deflation.left)):
        sent = probe.sent[way].rows
        assert float((sent @ known.T).abs().max()) <= 1e-15
        assert float((sent @ sent.T - torch.eye(len(sent))).abs().max()) <= 3e-15


def test_what_one_vector_saw_a_later_one_does_not_hide() -> None:
    probe = probed(A, 6)
    seen = probe.seen
    probe.draw()
    _step(probe)
    assert probe.seen == seen > max(probe.coefficients)


def test_the_defect_of_triplets_holds_what_is_not_adjoint_in_their_products() -> None:
    assert leading(A).defect <= 1e-13
    assert leading(A, stretch=1.01).defect == pytest.approx(0.01, rel=0.01)


def test_a_claim_holds_the_floor_and_the_defect_of_its_triplets() -> None:
    """The floor is what rounding does to τ, and to each bound that follows from it: it counts twice."""
    sound = leading(A)
    claim = claimed(probed(A, 6, replace(sound, defect=0.5)))
    assert claim.rounding == pytest.approx(FLOOR + 0.5 * sound.values[0])
    claim = claimed(probed(A, 6, sound))
    assert claim.upper[-1] >= (claim.tau + 2 * FLOOR) * (1 - 1e-12)


def test_a_threshold_is_complete_where_rounding_parts_it_from_the_values_on_both_sides() -> None:
    probe = probed(A, 20)
    bound, rounding = claimed(probe).upper[KNOWN], claimed(probe).rounding
    last = float(probe.deflation.values[-1])
    assert bound + 0.5 * rounding < last - 1.5 * rounding
    assert claimed(probe, threshold=bound + 0.5 * rounding).complete
    assert claimed(probe, threshold=last - 1.5 * rounding).complete
    assert not claimed(probe, threshold=bound - 0.5 * rounding).complete
    assert not claimed(probe, threshold=last - 0.5 * rounding).complete


def test_tau_with_the_floor_lies_below_the_last_value_of_a_complete_claim() -> None:
    probe = probed(A, 20)
    tau, last = probe.tau(DELTA), float(probe.deflation.values[-1])
    assert tau < last
    assert claimed(probe, floor=0.99 * (last - tau), tol=0.9).complete
    assert not claimed(probe, floor=1.01 * (last - tau), tol=0.9).complete


def test_where_the_triplets_span_one_side_its_residuals_alone_bound_the_values() -> None:
    """A V = U S with V square leaves nothing of A, however wrong Aᵀ U is."""
    square = matrix(spectrum("root", KNOWN), (6, KNOWN))
    claim = claimed(probed(square, 0, leading(square, stretch=1.01)))
    assert np.array(claim.upper[:KNOWN]) - claim.rounding == pytest.approx(spectrum("root", KNOWN), rel=1e-12)
    assert claim.upper[KNOWN] == 0.0
    other = claimed(probed(square.T, 0, leading(square.T, stretch=1.01)))
    assert min(np.array(other.upper[:KNOWN]) - other.rounding - spectrum("root", KNOWN)) > 1e-6


def test_a_value_under_a_high_floor_is_no_zero_of_the_operator() -> None:
    """All triplets are known, and the last says no more than that it is under the floor."""
    probe = probed(matrix(np.array([1.0, 0.5, 0.25, 0.01]), (6, KNOWN)), 0)
    assert [claimed(probe, floor=0.02, tol=tol).complete for tol in (1e-2, 3e-2)] == [False, True]
