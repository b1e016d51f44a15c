"""The polynomial of a random vector bounds the norm, as often as it says."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import binom

from detjac_lanczos.solvers.lanczos_polynomial import (
    largest_ritz_value,
    largest_root,
    log_polynomial,
    steps_left,
)
from detjac_lanczos.solvers.overlap import log_overlap


def golub_kahan(C: np.ndarray, v: np.ndarray, count: int) -> tuple[list[float], list[np.ndarray]]:
    """Return coefficients γ_1, … and vectors w_0, w_1, …, right and left in turns, by full reorthogonalisation."""
    vectors, coefficients = [v / np.linalg.norm(v)], []
    for step in range(count):
        w = C @ vectors[-1] if step % 2 == 0 else C.T @ vectors[-1]
        for _ in range(2):
            for other in vectors[(step + 1) % 2 :: 2]:
                w = w - (w @ other) * other
        coefficients.append(float(np.linalg.norm(w)))
        vectors.append(w / coefficients[-1])
    return coefficients, vectors


def exact_polynomial(coefficients: list[float], at: float) -> Fraction:
    """Return φ_m in rational arithmetic."""
    before, now, previous = Fraction(0), Fraction(1), Fraction(0)
    for coefficient in map(Fraction, coefficients):
        before, now = now, (Fraction(at) * now - previous * before) / coefficient
        previous = coefficient
    return now


@pytest.mark.parametrize("dimension", [2, 3, 17, 576, 10**6])
@pytest.mark.parametrize("delta", [1e-12, 1e-6, 1e-2, 0.3])
def test_overlap_is_the_integral_of_the_paper(dimension: int, delta: float) -> None:
    """P(|⟨y, v⟩| < γ) = ∫ cosⁿ⁻² over [0, arcsin γ] by the same over [0, π/2] (van Dorsselaer et al. 2000)."""
    gamma = math.exp(log_overlap(dimension, delta))

    def density(angle: float) -> float:
        return math.cos(angle) ** (dimension - 2)

    inside = quad(density, 0, math.asin(gamma), epsabs=0)[0]
    whole = math.sqrt(math.pi) / 2 * math.exp(math.lgamma((dimension - 1) / 2) - math.lgamma(dimension / 2))
    assert inside / whole == pytest.approx(delta, rel=1e-6)


def test_overlap_of_sampled_vectors() -> None:
    generator = np.random.default_rng(0)
    for dimension, delta, rows in [(2, 0.2, 1), (7, 0.05, 1), (40, 0.1, 1), (40, 0.01, 2), (7, 0.1, 5)]:
        vectors = generator.standard_normal((20000, dimension))
        first = np.linalg.norm(vectors[:, :rows], axis=1) / np.linalg.norm(vectors, axis=1)
        share = float((first < math.exp(log_overlap(dimension, delta, rows))).mean())
        assert share == pytest.approx(delta, abs=4 * math.sqrt(delta / 20000))
    assert log_overlap(1, 1e-6) == log_overlap(2, 1e-6, 2) == 0.0


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_components_along_the_leading_vectors_follow_the_polynomial(count: int) -> None:
    """⟨y₁, w_m⟩ = φ_m(σ₁) ⟨y₁, w_0⟩, on the left for odd m: the identity that the bound rests on."""
    generator = np.random.default_rng(count)
    C = generator.standard_normal((30, 20))
    left, values, right = np.linalg.svd(C)
    coefficients, vectors = golub_kahan(C, generator.standard_normal(20), count)
    leading = right[0] if count % 2 == 0 else left[:, 0]
    growth = math.exp(log_polynomial(coefficients, values[0]))
    assert leading @ vectors[count] == pytest.approx(growth * (right[0] @ vectors[0]), rel=1e-8)


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
@pytest.mark.parametrize("count", [1, 2, 7, 16])
def test_root_in_rational_arithmetic(count: int, scale: float) -> None:
    coefficients = list(np.random.default_rng(count).uniform(0.2, 2.0, count))
    for gamma in (1e-1, 1e-8):
        tau = largest_root([scale * c for c in coefficients], math.log(gamma)) / scale
        assert exact_polynomial(coefficients, tau * (1 - 1e-9)) < 1 / Fraction(gamma)
        assert exact_polynomial(coefficients, tau * (1 + 1e-9)) > 1 / Fraction(gamma)
        assert tau >= largest_ritz_value(coefficients[:-1])


def test_root_never_falls_when_a_coefficient_grows() -> None:
    generator = np.random.default_rng(5)
    for _ in range(100):
        coefficients = generator.uniform(0.01, 1.0, 9)
        grown = coefficients + generator.uniform(0, 0.1, 9) * (generator.random(9) < 0.3)
        assert largest_root(list(grown), -5.0) >= largest_root(list(coefficients), -5.0) * (1 - 1e-12)


def test_long_chains_neither_overflow_nor_cancel() -> None:
    coefficients = [1.0] * 500
    assert largest_root(coefficients, -20.0) == pytest.approx(2.0, rel=1e-3)
    assert largest_root(coefficients, -20.0) >= 2.0 * math.cos(math.pi / 501)
    assert log_polynomial(coefficients, 100.0) == pytest.approx(500 * math.acosh(50.0), rel=1e-3)


def test_an_exhausted_space_leaves_its_ritz_value() -> None:
    assert largest_root([3.0, 0.0], -20.0) == pytest.approx(3.0, rel=1e-15)
    assert largest_root([0.0], -20.0) == 0.0
    assert largest_root([3.0, 1e-200], -20.0) == pytest.approx(3.0, rel=1e-12)


@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("name", ["spike", "flat", "pair", "root"])
def test_failures_are_as_rare_as_delta(name: str, count: int) -> None:
    """With 400 vectors at δ = 0.05; a bound that fails always, or never comes near its level, fails here."""
    size, trials, delta = 60, 400, 0.05
    values = {
        "spike": np.r_[2.0, np.linspace(1.0, 0.1, size - 1)],
        "flat": np.ones(size),
        "pair": np.r_[1.0, 1.0 - 1e-3, np.full(size - 2, 0.3)],
        "root": 1 / np.sqrt(np.arange(1, size + 1)),
    }[name]
    generator = np.random.default_rng(count)
    log_gamma = log_overlap(size, delta)
    failures = 0
    for _ in range(trials):
        v = generator.standard_normal(size)
        steps = 1 if name == "flat" else count
        coefficients, _ = golub_kahan(np.diag(values), v, steps)
        failures += largest_root(coefficients, log_gamma) < values[0]
    assert failures <= binom.ppf(1 - 1e-6, trials, delta)


def test_the_level_is_reached_where_one_value_stands_out() -> None:
    """After one product of diag(1, ε, …) nothing is known but |⟨y₁, v⟩|: δ of the bounds must fail."""
    values = np.r_[1.0, np.full(39, 1e-9)]
    generator = np.random.default_rng(1)
    failures = 0
    for _ in range(2000):
        coefficients, _ = golub_kahan(np.diag(values), generator.standard_normal(40), 1)
        failures += largest_root(coefficients, log_overlap(40, 0.05)) < 1.0
    assert binom.ppf(1e-6, 2000, 0.05) <= failures <= binom.ppf(1 - 1e-6, 2000, 0.05)


def test_steps_are_planned() -> None:
    """On a dense spectrum, where steps are dear, the plan is right to 15 % from a third of the way on."""
    coefficients, _ = golub_kahan(np.diag(np.linspace(1, 0.1, 400)), np.random.default_rng(0).standard_normal(400), 40)
    log_gamma = log_overlap(400, 1e-6)
    for target in (1.1, 1.2, 1.4):
        needed = next(m for m in range(1, 41) if largest_root(coefficients[:m], log_gamma) <= target)
        for made in range(needed // 3, needed):
            assert made + steps_left(coefficients[:made], log_gamma, target) == pytest.approx(needed, rel=0.15)
    assert steps_left(coefficients[:10], log_gamma, 0.5) == math.inf
    assert steps_left(coefficients[:40], log_gamma, 3.0) == 0.0
