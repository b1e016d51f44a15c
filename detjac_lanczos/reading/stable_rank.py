"""Stable rank ‖J‖_F² / σ_1² of every token, from a few random cotangents that all tokens share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detjac_lanczos.operators import JacobianBatch
from detjac_lanczos.reading.contribution import Triplets
from detjac_lanczos.solvers.missed import Missed
from detjac_lanczos.solvers.streams import Stream
from detjac_lanczos.solvers.trace_interval import check_probes, rest_interval


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
    check_probes(probes, confidence)
    d_out = batch.shapes[0][0]
    generator = Stream.STABLE_RANK.generator(seed)
    Omega = torch.randn(d_out, probes, generator=generator, dtype=torch.float64).to(batch.device, batch.dtype)
    images = batch.rmatmat_shared(Omega)
    return [_estimate(image, Omega, found, confidence) for image, found in zip(images, triplets, strict=True)]


def surveyed_stable_rank(missed: Missed, confidence: float = 0.95) -> StableRank:
    """Return what a survey's measurements say of the stable rank, at no product.

    What its basis holds of ‖J‖_F² is exact; of the rest nothing is assumed, which only widens the interval. σ_1 lies
    in an interval of its own: both hold with at least the sum of their probabilities less 1.
    """
    low, high = missed.sigma_1
    chance = confidence + missed.confidence - 1
    if low == 0:
        return StableRank(0.0, (0.0, 0.0), 0.0, chance, missed.probes)
    total = missed.frobenius**2
    rest = missed.share * total
    least, most = rest_interval(rest, missed.probes, math.inf, confidence)
    return StableRank(
        value=total / float(missed.values[0]) ** 2,
        interval=((total - rest + least) / high**2, (total - rest + most) / low**2),
        frobenius=missed.frobenius,
        confidence=chance,
        probes=missed.probes,
    )


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
