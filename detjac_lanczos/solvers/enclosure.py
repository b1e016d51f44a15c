"""From a bound on what lies outside of triplets to intervals of singular values, index by index."""

from collections.abc import Sequence

import numpy as np

from detjac_lanczos.solvers.basis import small_eigh, small_eigvalsh

_ROUNDINGS = 8.0
"""What rounding may add to an eigenvalue, in ε of the largest. Chosen."""


def upper_bounds(values: np.ndarray, right: np.ndarray, left: np.ndarray, tau: float) -> np.ndarray:
    """Return bounds of σ_1(A), …, σ_{p+1}(A) from p triplets and a bound on the rest; the values are lower bounds.

    Let U, V (p columns) be orthonormal, S = Uᵀ A V = diag(s), R_R = A V - U S, R_L = Aᵀ U - V S and ‖C‖₂ ≤ τ for
    C = (I - U Uᵀ) A (I - V Vᵀ). In an orthonormal basis that begins with U and V, the symmetric matrix with eigenvalues
    ±σ_j(A) and zeros is

        [0 A; Aᵀ 0] = [J_S Z; Zᵀ J_C],   J_S = [0 S; S 0],   Z Zᵀ = diag(R_Lᵀ R_L, R_Rᵀ R_R),   J_C = [0 C; Cᵀ 0].

    J_C ≤ τ I as quadratic forms, and eigenvalues are monotone (Weyl; Horn, Johnson, Matrix Analysis, 4.3.12): σ_j(A) is
    at most the j-th eigenvalue of [J_S Z; Zᵀ τ I], for every j. With Z = L Qᵀ that is a matrix of order 4 p, and copies
    of τ that it already holds often enough. Triplets may lie below τ.

    The bound is never above s_j + 2 e² / (η_j + √(η_j² + 4 e²)) with e = max(‖R_R‖₂, ‖R_L‖₂) and η_j = s_j - τ > 0, the
    bound of Li, Li, "A note on eigenvalues of perturbed Hermitian matrices", Linear Algebra Appl. 395, 2005, who
    compare the same matrices by e alone: a triplet with a large residual and a small value hardly widens it.

    The last bound, of σ_{p+1}(A), is also √(τ² + min(‖R_L‖₂, ‖R_R‖₂)²) where that is less: A - A V Vᵀ = U R_Lᵀ + C is
    what an approximation of rank p leaves (Eckart, Young), and A - U Uᵀ A = R_R Vᵀ + C is another.

    Parameters
    ----------
    values : ndarray, shape (p,), descending
    right, left : ndarray, shape (p, p)
        R_Rᵀ R_R and R_Lᵀ R_L.
    tau : float

    Returns
    -------
    ndarray, shape (p + 1,)
    """
    p = len(values)
    bordered = np.zeros((4 * p, 4 * p))
    bordered[:p, p : 2 * p] = np.diag(values)
    bordered[:p, 2 * p : 3 * p] = _factor(left)
    bordered[p : 2 * p, 3 * p :] = _factor(right)
    bordered += bordered.T
    np.fill_diagonal(bordered[2 * p :, 2 * p :], tau)
    bounds = small_eigvalsh(bordered)[::-1][: p + 1]
    smaller = min(small_eigvalsh(gram)[-1] for gram in (left, right))
    bounds[p] = min(bounds[p], np.sqrt(tau**2 + max(smaller, 0.0)))
    return bounds


def whole_bounds(values: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Return bounds of σ_1(A), …, σ_p(A), and 0 for a value beyond, where the vectors of one side span their space.

    With V square, A = A V Vᵀ = (U S + R_R) Vᵀ, so that σ_j(A) ≤ s_j + ‖R_R‖₂ (Weyl); with U square, Aᵀ the same way.

    Parameters
    ----------
    values : ndarray, shape (p,), descending
    gram : ndarray, shape (p, p)
        R_Rᵀ R_R where V is square, R_Lᵀ R_L where U is.

    Returns
    -------
    ndarray, shape (p + 1,)
    """
    return np.r_[values + np.sqrt(max(small_eigvalsh(gram)[-1], 0.0)), 0.0]


def largest_tau(values: np.ndarray, right: np.ndarray, left: np.ndarray, limits: np.ndarray | Sequence[float]) -> float:
    """Return the largest τ with which :func:`upper_bounds` keeps σ_j ≤ limits_j; -∞ where the residuals allow none.

    The j-th eigenvalue of [J_S Z; Zᵀ τ I] is at most t > τ while D - L Lᵀ / (t - τ), D = t I - J_S, has at most j - 1
    negative eigenvalues (Schur complement). By the other Schur complement of [D L; Lᵀ (t - τ) I] it has as many as D
    (the s_i above t) and as there are eigenvalues of Lᵀ D⁻¹ L above t - τ: with d of the former, t - τ may go down to
    the (j - d)-th of the latter, or to 0 where that is negative. The answer is the least such τ of all j: eigenvalues
    are taken in the order of :func:`_most_nearest`, which bounds them, until no j left can be the one.
    D⁻¹ is [t s; s t] / (t² - s²) for each s of S.

    Parameters
    ----------
    values, right, left
        As in :func:`upper_bounds`.
    limits : sequence of float
        Of the leading values, each above its value; infinite where any bound will do.
    """
    bounded = np.flatnonzero(np.asarray(limits) < np.inf)
    t = np.asarray(limits)[bounded]
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        # Their sum and difference are t and s over t² - s², without squares that overflow.
        below, above = 0.5 / (t[:, None] - values), 0.5 / (t[:, None] + values)
        if not np.isfinite(below + above).all():
            return -np.inf
    ranks = bounded - (values > t[:, None]).sum(axis=1)
    right_factor, left_factor = _factor(right), _factor(left)
    most, rounding = _most_nearest(right_factor, left_factor, below, above, ranks)
    least = t - most - _ROUNDINGS * np.finfo(np.float64).eps * (t + rounding)
    tau = np.inf
    for j in np.argsort(least):
        if least[j] >= tau:
            break
        own, other = (below[j] + above[j])[:, None], (below[j] - above[j])[:, None]
        mixed = left_factor.T @ (other * right_factor)
        border = np.block(
            [[left_factor.T @ (own * left_factor), mixed], [mixed.T, right_factor.T @ (own * right_factor)]]
        )
        nearest = small_eigvalsh(border)[::-1][ranks[j]]
        tau = min(tau, float(t[j] - max(nearest, 0.0)))
    return tau


def _most_nearest(
    right_factor: np.ndarray, left_factor: np.ndarray, below: np.ndarray, above: np.ndarray, ranks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return what the eigenvalue of each rank of Lᵀ D⁻¹ L is at most, for every D, and what the first is at most.

    With P the positive part of D⁻¹, they are at most those of √P L Lᵀ √P. Without its r rows of the largest absolute
    sums a symmetric matrix has a first eigenvalue no less than its (r + 1)-th (Cauchy), and no more than the largest
    sum left (Gershgorin). D has the eigenvectors (x, x) and (x, -x) with x of one entry.
    """
    of_left, of_right = left_factor @ left_factor.T, right_factor @ right_factor.T
    total, difference = np.abs(of_left + of_right), np.abs(of_left - of_right)
    near, far = np.sqrt(np.maximum(below, 0.0)), np.sqrt(np.maximum(above, 0.0))
    sums = np.hstack([near * (near @ total + far @ difference), far * (near @ difference + far @ total)])
    sums = np.sort(sums, axis=1)[:, ::-1]
    return sums[np.arange(len(ranks)), ranks], sums[:, 0]


def _factor(gram: np.ndarray) -> np.ndarray:
    """Return L with L Lᵀ = gram, which may be singular."""
    weights, vectors = small_eigh(gram)
    return np.asarray(vectors * np.sqrt(np.maximum(weights, 0.0)))
