"""Intervals of singular values hold their values, whatever the triplets; and they are narrower than known ones."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detjac_lanczos.solvers.enclosure import _most_nearest, largest_tau, upper_bounds, whole_bounds


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
@given(shape=st.tuples(st.integers(1, 12), st.integers(1, 12)), distance=st.floats(-8, 0), seed=st.integers(0, 2**16))
def test_every_value_of_a_whole_space_is_enclosed(shape: tuple[int, int], distance: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    A = generator.standard_normal(shape)
    exact, rank = np.linalg.svd(A, compute_uv=False), min(shape)
    values, right, left, _ = nearby_triplets(A, np.arange(rank), 10.0**distance, generator)
    bounds = whole_bounds(values, right if shape[1] == rank else left)
    assert (values <= exact + 1e-12).all()
    assert (exact <= bounds[:-1] + 1e-12).all()
    assert bounds[-1] == 0.0


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


def square_root(gram: np.ndarray) -> np.ndarray:
    weights, vectors = np.linalg.eigh(gram)
    return vectors * np.sqrt(np.maximum(weights, 0.0))


def reaches_of(values, right, left, t) -> np.ndarray:
    """All eigenvalues of Lᵀ D⁻¹ L of every limit at once, each descending: memory of order k³."""
    p = len(values)
    factor = np.zeros((2 * p, 2 * p))
    for block, gram in ((slice(p), left), (slice(p, None), right)):
        factor[block, block] = square_root(gram)
    below, above = 0.5 / (t[:, None] - values), 0.5 / (t[:, None] + values)
    inverses = [
        np.block([[np.diag(b + a), np.diag(b - a)], [np.diag(b - a), np.diag(b + a)]])
        for b, a in zip(below, above, strict=True)
    ]
    return np.linalg.eigvalsh(factor.T @ np.stack(inverses) @ factor)[:, ::-1]


def largest_tau_of_all(values, right, left, limits) -> float:
    """The same as the walk, of every limit."""
    bounded = np.flatnonzero(np.asarray(limits) < np.inf)
    if not bounded.size:
        return np.inf
    t = np.asarray(limits)[bounded]
    reaches = reaches_of(values, right, left, t)
    nearest = reaches[np.arange(len(bounded)), bounded - (values > t[:, None]).sum(axis=1)]
    return float((t - np.maximum(nearest, 0.0)).min())


def residual_gram(p: int, rank: int, lengths: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    residuals = generator.standard_normal((rank, p)) * lengths
    return residuals.T @ residuals


@settings(max_examples=300, deadline=None)
@given(
    count=st.integers(1, 12),
    claimed=st.integers(1, 12),
    spread=st.sampled_from([0.0, 1e-6, 1e-3, 0.3, 1.0]),
    tol=st.sampled_from([1e-6, 1e-3, 0.1, 0.9]),
    size=st.floats(-6, 1),
    decay=st.floats(0, 4),
    rank=st.integers(1, 12),
    unbounded=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_the_walk_finds_the_least_of_all(count, claimed, spread, tol, size, decay, rank, unbounded, seed) -> None:
    """Also in clusters, where values lie above limits of others, and where only some values are limited."""
    generator = np.random.default_rng(seed)
    values = np.sort(1.0 - spread * generator.random(count))[::-1]
    lengths = 10.0 ** (size - decay * generator.random(count))
    right, left = (residual_gram(count, rank, lengths, generator) for _ in range(2))
    limits = values[: min(claimed, count)] * (1.0 + tol * generator.uniform(0.5, 1.0, min(claimed, count)))
    if unbounded:
        limits[generator.random(len(limits)) < 0.5] = np.inf
    found, known = largest_tau(values, right, left, limits), largest_tau_of_all(values, right, left, limits)
    if not np.isfinite(known):
        assert found == known
        return
    finite = limits[np.isfinite(limits)]
    nearest = np.abs(np.subtract.outer(finite, values)).min()
    assert abs(found - known) <= 1e-13 * (1.0 + (np.trace(left) + np.trace(right)) / nearest)


def test_what_the_walk_goes_by_bounds_every_eigenvalue() -> None:
    """A bound too low by chance ends the walk early: τ is then too large, and rarely shows it."""
    for seed in range(60):
        generator = np.random.default_rng(seed)
        p = int(generator.integers(2, 7))
        values = np.sort(generator.random(p))[::-1]
        right, left = (residual_gram(p, p, generator.random(p), generator) for _ in range(2))
        t = values[: p - 1] + generator.random(p - 1)
        ranks = np.arange(p - 1) - (values > t[:, None]).sum(axis=1)
        factors = square_root(right), square_root(left)
        most, first = _most_nearest(*factors, 0.5 / (t[:, None] - values), 0.5 / (t[:, None] + values), ranks)
        exact = reaches_of(values, right, left, t)
        assert (exact[np.arange(p - 1), ranks] <= most * (1 + 1e-12)).all()
        assert (exact[:, 0] <= first * (1 + 1e-12)).all()


def test_a_claim_of_many_triplets_takes_few_eigenproblems(monkeypatch) -> None:
    """And memory of the order of their Gram matrices: not that times the number of limits."""
    k, solved = 150, []
    solve = np.linalg.eigvalsh
    monkeypatch.setattr(np.linalg, "eigvalsh", lambda matrix: solved.append(matrix.shape) or solve(matrix))
    generator = np.random.default_rng(0)
    values = 0.97 ** np.arange(k + 6)
    right = residual_gram(k + 6, 3, 3e-4 * values, generator)
    tracemalloc.start()
    tau = largest_tau(values, right, 0.0 * right, values[:k] * (1 + 1e-3))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.5 * values[k - 1] < tau < 1.001 * values[k - 1]
    assert len(solved) <= 3
    assert peak <= 24 * 8 * (k + 6) ** 2
