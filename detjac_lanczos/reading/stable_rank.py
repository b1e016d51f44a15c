"""Stable rank ‖J‖_F² / σ_1² of every token, from a few random cotangents that all tokens share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.special import chdtriv, gammaincinv
from torch import Tensor

from detjac_lanczos.errors import InputError
from detjac_lanczos.operators import JacobianBatch
from detjac_lanczos.reading.contribution import Triplets

_MOST_FREEDOM = 1e8  # beyond it λ_i ≤ largest cannot be true of numbers as computed


@dataclass(frozen=True)
class StableRank:
    """An estimate with its interval.

    Attributes
    ----------
    value : float
        Estimate of ‖J‖_F² / σ_1².
    interval : (float, float)
        Holds the stable rank with probability ``confidence`` over the probes; see `rest_interval` for what it assumes.
    frobenius : float
        Estimate of ‖J‖_F.
    confidence : float
    probes : int
    """

    value: float
    interval: tuple[float, float]
    frobenius: float
    confidence: float
    probes: int


def stable_ranks(
    batch: JacobianBatch, triplets: Sequence[Triplets], *, probes: int = 16, seed: int = 0, confidence: float = 0.95
) -> list[StableRank]:
    """Estimate the stable rank of every operator of a batch, with ``probes`` shared cotangents (n rows each).

    With ω standard normal, ‖(J − U S Vᵀ)ᵀ ω‖² is an unbiased estimate of ‖J − U S Vᵀ‖_F², and ‖J‖_F² is that plus
    Σ s_j² wherever s_j = u_jᵀ J v_j, as Ritz values are. The known part is removed without a product:
    (U S Vᵀ)ᵀ ω = V S Uᵀ ω.

    Parameters
    ----------
    batch : JacobianBatch
    triplets : sequence of Triplets
        One per operator, largest value first.
    probes : int
        The work is this many times ``batch.shared_cost()`` row-sweeps.
    seed : int
    confidence : float
        Of each interval alone; the intervals of one call share their probes.

    Returns
    -------
    list of StableRank

    Raises
    ------
    InputError
        If ``confidence`` is not in (0, 1), or too small for so few probes: the interval is proven only where the
        quantiles of χ² with ``probes`` degrees of freedom are 2 or more away from its mean.

    References
    ----------
    Girard 1989; Hutchinson 1989. Removing the leading triplets first: Meyer, Musco, Musco, Woodruff, "Hutch++", 2021.
    """
    if probes < 3 or not 0 < confidence < 1:
        raise InputError(f"stable_ranks takes probes ≥ 3 and 0 < confidence < 1; got {probes} and {confidence}")
    if any(abs(_quantile(probes, level) - probes) < 2 for level in _levels(confidence)):
        raise InputError(f"{probes} probes prove no interval of confidence {confidence}; give more of either")
    d_out = batch.shapes[0][0]
    generator = torch.Generator().manual_seed(seed)
    Omega = torch.randn(d_out, probes, generator=generator, dtype=torch.float64).to(batch.device, batch.dtype)
    images = batch.rmatmat_shared(Omega)
    return [_estimate(image, Omega, found, confidence) for image, found in zip(images, triplets, strict=True)]


def _estimate(image: Tensor, Omega: Tensor, triplets: Triplets, confidence: float) -> StableRank:
    U, S, V = (part.to(image.device, torch.float64) for part in (triplets.U, triplets.S, triplets.V))
    rest = image.double() - V @ (S[:, None] * (U.T @ Omega.double()))
    squares = rest.square().sum(dim=0)
    known, first, last = float(S.square().sum()), float(S[0]), float(S[-1])
    probes = Omega.shape[1]
    if first == 0:
        return StableRank(0.0, (0.0, 0.0), 0.0, confidence, probes)
    mean = float(squares.mean())
    low, high = rest_interval(mean, probes, last**2, confidence)
    return StableRank(
        value=(known + mean) / first**2,
        interval=((known + low) / first**2, (known + high) / first**2),
        frobenius=math.sqrt(known + mean),
        confidence=confidence,
        probes=probes,
    )


def rest_interval(mean: float, probes: int, largest: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of F = Σ λ_i from the mean of m independent values Σ λ_i χ²_1, all λ_i ≤ ``largest``.

    The interval inverts a test: F belongs to it if mean / F lies between the (1 ± confidence)/2 quantiles of χ²_ν / ν
    with ν = m · max(1, F / largest). Each tail of mean / F is at most that of χ²_ν / ν from 2 / ν beyond 1 on, so that
    coverage is at least ``confidence`` where these quantiles lie so far out. Here λ_i are the squared singular values
    beyond the k-th, and ``largest`` is σ_k²: the interval assumes that no value above σ_k was missed.

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
    single = mean * probes / _quantile(probes, level)
    if single <= largest or probes * mean > _MOST_FREEDOM * largest:
        return single
    return largest / probes * float(chdtriv(level, probes * mean / largest))


def _levels(confidence: float) -> tuple[float, float]:
    return (1 + confidence) / 2, (1 - confidence) / 2


def _quantile(freedom: float, level: float) -> float:
    return 2 * float(gammaincinv(freedom / 2, level))
