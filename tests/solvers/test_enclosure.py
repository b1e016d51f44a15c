"""Intervals of singular values hold their values, whatever the triplets; and they are narrower than known ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detjac_lanczos.solvers.enclosure import largest_tau, upper_bounds


def nearby_triplets(A: np.ndarray, chosen: np.ndarray, distance: float, generator: np.random.Generator):
    """Return Ritz triplets near the chosen singular triplets, the Gram matrices of their residuals, and ‖C‖₂."""
    left, _, right = np.linalg.svd(A)
    bases = []
    for vectors in (left[:, chosen], right[chosen].T):
        noise = generator.standard_normal(vectors.shape) / np.sqrt(len(vectors))
        bases.append(np.linalg.qr(vectors + distance * noise)[0])
    U, V = bases
    a, values, b = np.linalg.svd(U.T @ A @ V)
    U, V = U @ a, V @ b.T
    right_residuals, left_residuals = A @ V - U * values, A.T @ U - V * values
    C = A - U @ (U.T @ A)
    C = C - (C @ V) @ V.T
    return values, right_residuals.T @ right_residuals, left_residuals.T @ left_residuals, np.linalg.norm(C, 2)


cases = given(
    shape=st.tuples(st.integers(3, 14), st.integers(3, 14)),
    count=st.integers(1, 12),
    distance=st.floats(-5, 0),
    decay=st.integers(1, 3),
    leading=st.booleans(),
    seed=st.integers(0, 2**16),
)


def example(shape, count, distance, decay, leading, seed):
    generator = np.random.default_rng(seed)
    rank = min(shape)
    count = min(count, rank - 1)
    factors = [np.linalg.qr(generator.standard_normal((rows, rank)))[0] for rows in shape]
    A = (factors[0] * np.sort(generator.random(rank) ** decay)[::-1]) @ factors[1].T
    chosen = np.arange(count) if leading else np.sort(generator.permutation(rank)[:count])
    return np.linalg.svd(A, compute_uv=False), nearby_triplets(A, chosen, 10.0**distance, generator)


@settings(max_examples=100, deadline=None)
@cases
def test_every_value_is_enclosed(shape, count, distance, decay, leading, seed) -> None:
    """Also where the triplets are poor or not the leading ones: τ then says so."""
    exact, (values, right, left, tau) = example(shape, count, distance, decay, leading, seed)
    bounds = upper_bounds(values, right, left, tau)
    count = len(values)
    assert (values <= exact[:count] + 1e-12).all()
    assert (exact[: count + 1] <= bounds + 1e-12).all()


@settings(max_examples=100, deadline=None)
@cases
def test_never_wider_than_li_and_li(shape, count, distance, decay, leading, seed) -> None:
    _, (values, right, left, tau) = example(shape, count, distance, decay, leading, seed)
    bounds = upper_bounds(values, right, left, tau)
    e = np.sqrt(max(np.linalg.norm(right, 2), np.linalg.norm(left, 2)))
    gaps = values - tau
    known = values + 2 * e**2 / (gaps + np.sqrt(gaps**2 + 4 * e**2))
    assert (bounds[:-1] <= known + 1e-12)[gaps > 0].all()
    assert bounds[-1] <= tau + e + 1e-12


@settings(max_examples=100, deadline=None)
@cases
def test_largest_tau_is_where_a_limit_is_met(shape, count, distance, decay, leading, seed) -> None:
    _, (values, right, left, _) = example(shape, count, distance, decay, leading, seed)
    limits = values[: max(1, len(values) // 2)] * 1.01
    tau = largest_tau(values, right, left, limits)
    if tau > 0:
        within = upper_bounds(values, right, left, tau * (1 - 1e-9))[: len(limits)]
        beyond = upper_bounds(values, right, left, tau * (1 + 1e-3))[: len(limits)]
        assert (within <= limits * (1 + 1e-12)).all()
        assert (beyond > limits * (1 - 1e-12)).any()


def test_the_enclosure_is_quadratic_in_the_residuals() -> None:
    generator = np.random.default_rng(0)
    A = np.diag(np.r_[3.0, 2.0, np.linspace(1.0, 0.1, 18)])
    widths = []
    for distance in (1e-2, 1e-4):
        values, right, left, tau = nearby_triplets(A, np.arange(2), distance, generator)
        widths.append(float((upper_bounds(values, right, left, tau)[:2] - values).max()))
    assert widths[0] / widths[1] == pytest.approx(1e4, rel=0.3)


def test_a_poor_guard_does_not_spoil_the_others() -> None:
    """Residuals of 1e-4 for the first two and 0.1 for a guard: e of all three would cost a hundred times more."""
    values = np.array([2.0, 1.5, 1.0])
    grams = np.diag([1e-8, 1e-8, 1e-2])
    bounds = upper_bounds(values, grams, grams, 0.9)
    assert float((bounds[:2] - values[:2]).max()) <= 2e-8
    assert bounds[2] <= 1.1 + 0.05
    assert largest_tau(values, grams, grams, values[:2] * (1 + 1e-3)) >= 1.4


def test_limits_that_residuals_forbid() -> None:
    grams = np.diag([1.0, 1.0])
    assert largest_tau(np.array([1.0, 0.5]), grams, grams, [1.001]) < 0.0
    assert largest_tau(np.array([1.0, 1.0]), np.zeros((2, 2)), np.zeros((2, 2)), [1.0]) == -np.inf
