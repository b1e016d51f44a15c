"""How much of a fixed vector lies along random orthonormal ones."""

import math

from scipy.special import betaincinv


def held_share(rows: int, room: int, level: float) -> float:
    """Return the quantile of ‖W e‖² for a unit e and ``rows`` orthonormal rows W, uniform in ``room`` dimensions.

    It has the distribution Beta(r/2, (n - r)/2): (g_1² + … + g_r²) / (g_1² + … + g_n²) of independent normal g_i, a
    ratio of χ²_r to χ²_r + χ²_{n - r}.
    """
    return float(betaincinv(rows / 2, (room - rows) / 2, level)) if 0 < rows < room else 1.0


def log_overlap(dimension: int, delta: float, rows: int = 1) -> float:
    """Return ln γ such that a random unit vector has |⟨y, v⟩| < γ with probability δ, for any fixed unit y.

    For ``rows`` orthonormal random rows F, ‖F y‖ < γ.

    Source: van Dorsselaer, Hochstenbach, van der Vorst, "Computing probabilistic bounds for extreme eigenvalues of
    symmetric matrices with the Lanczos method", SIAM J. Matrix Anal. Appl. 22, 2000, who write the same probability as
    an integral of cosⁿ⁻² over an angle.
    """
    return 0.5 * math.log(held_share(rows, dimension, delta))
