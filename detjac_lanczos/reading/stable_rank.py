"""Stable rank ‖J‖_F² / σ_1² of every token, from a few random cotangents that all tokens share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from scipy.optimize import brentq
from scipy.stats import chi2
from torch import Tensor

from detjac_lanczos.errors import InputError
from detjac_lanczos.operators import JacobianBatch
from detjac_lanczos.reading.contribution import Triplets


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
        If ``probes`` < 2 or ``confidence`` is not in (0, 1).

    References
    ----------
    Girard 1989; Hutchinson 1989. Removing the leading triplets first: Meyer, Musco, Musco, Woodruff, "Hutch++", 2021.
    """
    if probes < 2 or not 0 < confidence < 1:
        raise InputError(f"stable_ranks takes probes ≥ 2 and 0 < confidence < 1; got {probes} and {confidence}")
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
    with ν = m · max(1, ⌊F / largest⌋). Weights that sum to F and are each at most ``largest`` are majorised by
    ⌊F / largest⌋ equal ones, whose tails, far enough out, are the heaviest (Bock, Diaconis, Huffer and Perlman 1987;
    Székely and Bakirov 2003): coverage is at least ``confidence``. Here λ_i are the squared singular values beyond the
    k-th, and ``largest`` is σ_k²: the interval assumes that no value above σ_k was missed.

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
    """
    if mean <= 0:
        return 0.0, 0.0

    def excess(log_total: float, level: float) -> float:
        total = mean * math.exp(log_total)
        freedom = probes * max(1.0, math.floor(total / largest) if largest > 0 else 1.0)
        return float(chi2.ppf(level, freedom)) / freedom * math.exp(log_total) - 1

    below, above = (1 + confidence) / 2, (1 - confidence) / 2
    low = brentq(partial(excess, level=below), -30.0, 30.0)
    high = brentq(partial(excess, level=above), -30.0, 30.0)
    return mean * math.exp(low), mean * math.exp(high)
