"""Intervals of sums of squares from Gaussian probes, with the probability that they hold."""

from scipy.special import chdtriv, gammaincinv

from detjac_lanczos.errors import InputError
from detjac_lanczos.solvers.options import is_number, is_whole

_MOST_FREEDOM = 1e8  # beyond it λ_i ≤ largest cannot be true of numbers as computed


def check_probes(probes: int, confidence: float) -> None:
    """Raise :class:`InputError` where so many probes prove no interval of this confidence.

    :func:`rest_interval` is proven only where the quantiles of χ² with ``probes`` degrees of freedom are 2 or more away
    from its mean.
    """
    if not is_whole(probes) or probes < 3 or not is_number(confidence) or not 0 < confidence < 1:
        raise InputError(f"an interval needs probes ≥ 3 and 0 < confidence < 1; got {probes!r} and {confidence!r}")
    if any(abs(chi_square_quantile(probes, level) - probes) < 2 for level in _levels(confidence)):
        raise InputError(f"{probes} probes prove no interval of confidence {confidence}; give more of either")


def rest_interval(mean: float, probes: int, largest: float, confidence: float) -> tuple[float, float]:
    """Return the interval of F = Σ λ_i from the mean of m independent values Σ λ_i χ²_1, all λ_i ≤ ``largest``.

    The interval inverts a test: F belongs to it if mean / F lies between the (1 ± confidence)/2 quantiles of χ²_ν / ν
    with ν = m · max(1, F / largest). Each tail of mean / F is at most that of χ²_ν / ν from 2 / ν beyond 1 on, so that
    coverage is at least ``confidence`` where these quantiles lie so far out. With λ_i the squared singular values
    beyond the k-th and ``largest`` = σ_k², the interval assumes that no value above σ_k was missed; with ``largest``
    infinite it assumes nothing.

    Parameters
    ----------
    mean : float
        Mean of the probes' squared lengths.
    probes : int
        m.
    largest : float
        Bound on each λ_i, in the same unit.
    confidence : float

    Returns
    -------
    low, high : float

    References
    ----------
    Hallman, "Extremal bounds for Gaussian trace estimation", arXiv:2411.15454, 2024: theorem 6 is the comparison of
    the tails beyond some point, conjecture 3 puts that point at 2 / ν. Proof of the conjecture: Stepaniants 2026, in
    the collection OpenProblemsInNLA, RA-12. It moves weights apart, the smallest fractional one first, and bounds the
    mode of the density (unimodal: Roosta-Khorasani and Székely, Metrika 78, 2015) on the way.
    """
    if mean <= 0:
        return 0.0, 0.0
    low, high = (_total(mean, probes, largest, level) for level in _levels(confidence))
    return low, high


def _total(mean: float, probes: int, largest: float, level: float) -> float:
    """Return the one F for which mean / F is the quantile of χ²_ν / ν at ``level``."""
    single = mean * probes / chi_square_quantile(probes, level)
    if single <= largest or probes * mean > _MOST_FREEDOM * largest:
        return single
    return largest / probes * float(chdtriv(level, probes * mean / largest))


def chi_square_factors(probes: int, confidence: float) -> tuple[float, float]:
    """Return what the mean of ``probes`` values r χ²_1 is to be multiplied with for the ends of an interval of r."""
    low, high = (probes / chi_square_quantile(probes, level) for level in _levels(confidence))
    return low, high


def _levels(confidence: float) -> tuple[float, float]:
    return (1 + confidence) / 2, (1 - confidence) / 2


def chi_square_quantile(freedom: float, level: float) -> float:
    """Return the quantile of χ² with so many degrees of freedom."""
    return 2 * float(gammaincinv(freedom / 2, level))
