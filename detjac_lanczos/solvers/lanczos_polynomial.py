"""Upper bounds of a matrix norm from the Lanczos polynomial of a random vector."""

import math
from collections.abc import Sequence

import numpy as np

_BISECTIONS = 60


def largest_root(coefficients: Sequence[float], log_gamma: float) -> float:
    """Return τ with φ_m(τ) = 1/γ, right of all zeros of the Lanczos polynomial φ_m: ‖C‖₂ ≤ τ unless |⟨y₁, v⟩| < γ.

    Golub-Kahan steps on C from the unit vector v make orthonormal vectors v = w_0, w_1, w_2, … (right and left ones in
    turns) by γ_{j+1} w_{j+1} = C w_j - γ_j w_{j-1} (Cᵀ in place of C for left w_j). Let y_1 and x_1 be the leading
    singular vectors of C and σ = ‖C‖₂; the components ψ_j of w_j along y_1 (right) or x_1 (left) then obey
    γ_{j+1} ψ_{j+1} = σ ψ_j - γ_j ψ_{j-1}, so that ψ_j = φ_j(σ) ψ_0 with φ_0 = 1 and the same recurrence for φ. Now
    |ψ_m| ≤ ‖w_m‖ = 1, hence φ_m(σ) ≤ 1 / |⟨y_1, v⟩| ≤ 1/γ. Beyond its largest zero φ_m grows, so σ ≤ τ.
    |⟨y_1, v⟩| ≥ γ does not depend on m: all m may be tried, and more steps taken, at one price in probability.

    Parameters
    ----------
    coefficients : sequence of float
        γ_1, …, γ_m, all ≥ 0; a zero says that the Krylov space of v is exhausted, and τ is its largest Ritz value.
    log_gamma : float
        ln γ.

    Notes
    -----
    Even m is the bound of Hochstenbach, "Probabilistic upper bounds for the matrix two-norm", J. Sci. Comput. 57, 2013
    (his polynomial of CᵀC); odd m is the same argument for the left vector after half a step. τ never falls when a
    coefficient grows: each ratio φ_{j+1} / φ_j falls with every γ.
    """
    unit = max(coefficients)
    if unit == 0.0:
        return 0.0
    scaled = [coefficient / unit for coefficient in coefficients]
    low = largest_ritz_value(scaled[:-1])
    width = 1.0
    while log_polynomial(scaled, low + width) < -log_gamma:
        width *= 2.0
    high = low + width
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if log_polynomial(scaled, middle) < -log_gamma:
            low = middle
        else:
            high = middle
    return high * unit


def log_polynomial(coefficients: Sequence[float], at: float) -> float:
    """Return ln φ_m, -∞ where ``at`` is not beyond all zeros of φ_1, …, φ_m.

    By the ratios φ_{j+1} / φ_j = (at - γ_j / (φ_j / φ_{j-1})) / γ_{j+1}, which are all positive there (their zeros
    interlace): the sum of their logarithms neither overflows nor cancels.
    """
    total, ratio, previous = 0.0, math.inf, 0.0
    for coefficient in coefficients:
        numerator = at - previous / ratio
        if numerator <= 0.0:
            return -math.inf
        if coefficient == 0.0:
            return math.inf
        ratio = numerator / coefficient
        total += math.log(ratio)
        previous = coefficient
    return total


def largest_ritz_value(coefficients: Sequence[float]) -> float:
    """Return the largest singular value of C on the space of w_0, …, w_m: a lower bound of ‖C‖₂.

    It is the largest zero of φ_{m+1}, which γ_{m+1} only scales.
    """
    off = np.asarray(coefficients)
    return max(0.0, float(np.linalg.eigvalsh(np.diag(off, 1) + np.diag(off, -1))[-1])) if off.size else 0.0


def steps_left(coefficients: Sequence[float], log_gamma: float, target: float) -> float:
    """Return how many more coefficients are expected to bring τ down to ``target``; infinite if none can.

    Beyond the largest Ritz value θ the polynomial grows per step like those of Chebyshev, by exp(arcosh(target / θ)).
    """
    ritz = largest_ritz_value(coefficients)
    if target <= ritz:
        return math.inf
    missing = -log_gamma - log_polynomial(coefficients, target)
    return max(0.0, missing / math.acosh(target / ritz)) if ritz > 0.0 else 0.0
