"""Stable rank ‖J‖_F² / σ_1² of every token, from a few random cotangents that all tokens share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from detjac_lanczos.operators import JacobianBatch
from detjac_lanczos.reading.contribution import Triplets, check_triplets
from detjac_lanczos.solvers.deflated_norm import frobenius_interval, stable_rank_interval
from detjac_lanczos.solvers.missed import Missed
from detjac_lanczos.solvers.options import check_seed
from detjac_lanczos.solvers.result import Status
from detjac_lanczos.solvers.rounding import epsilon_at
from detjac_lanczos.solvers.streams import Stream
from detjac_lanczos.solvers.trace_interval import check_probes, rest_interval

PROBES = 16
"""Random cotangents of an estimate: its work is as many times ``batch.shared_cost()`` row-sweeps."""

CONFIDENCE = 0.95
"""Of the intervals in a run."""


class MeasuredTriplets(Triplets, Protocol):
    """Triplets with the residuals of each, and how the search for them ended."""

    @property
    def residuals(self) -> Tensor | Sequence[Sequence[float | None]]:
        """‖J v - σ u‖ and ‖Jᵀ u - σ v‖, absolute, (k, 2)."""

    @property
    def status(self) -> Status | str:
        """A `Status`, or its word."""


@dataclass(frozen=True)
class StableRank:
    """An estimate with its interval.

    Attributes
    ----------
    value : float
        Estimate of ‖J‖_F² / σ_1².
    interval : (float, float)
        Holds the stable rank with probability ``confidence`` over the probes; see `stable_ranks` for what it assumes.
    confidence : float
    """

    value: float
    interval: tuple[float, float]
    confidence: float


def stable_ranks(
    batch: JacobianBatch,
    triplets: Sequence[MeasuredTriplets],
    *,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> list[StableRank]:
    """Estimate the stable rank of every operator of a batch, with `PROBES` shared cotangents (n rows each).

    With ω standard normal, ‖(J − U S Vᵀ)ᵀ ω‖² is an unbiased estimate of ‖J − U S Vᵀ‖_F², and ‖J‖_F² is that plus
    Σ s_j² wherever s_j = u_jᵀ J v_j, as Ritz values are. The known part is removed without a product:
    (U S Vᵀ)ᵀ ω = V S Uᵀ ω.

    An interval assumes that a search which ended well has missed no value, up to the residuals: σ_1 is at most s_1 +
    its residual, and none of the others above s_k + ‖residuals‖. Of triplets that a budget cut short it assumes
    nothing, since a residual says that some value is that near, not that it is σ_1: the lower end is then 1.

    Parameters
    ----------
    batch : JacobianBatch
    triplets : sequence of MeasuredTriplets
        One per operator, largest value first.
    seed : int
        From 0 to 2³² - 1.
    confidence : float
        Of each interval alone; the intervals of one call share their probes.

    Returns
    -------
    list of StableRank

    Raises
    ------
    InputError
        As in `estimate_contributions`, or if ``confidence`` is not in (0, 1), or too small for so few probes: the
        interval is proven only where the quantiles of χ² with `PROBES` degrees of freedom are 2 or more away from its
        mean.

    References
    ----------
    Girard 1989; Hutchinson 1989. Removing the leading triplets first: Meyer, Musco, Musco, Woodruff, "Hutch++", 2021.
    """
    check_probes(PROBES, confidence)
    check_triplets(batch, triplets)
    check_seed(seed)
    d_out = batch.shapes[0][0]
    generator = Stream.STABLE_RANK.generator(seed)
    Omega = torch.randn(d_out, PROBES, generator=generator, dtype=torch.float64, device="cpu").to(
        batch.device, batch.dtype
    )
    images = batch.rmatmat_shared(Omega)
    return [
        _estimate(image.T, Omega.T, found, confidence, batch.dtype)
        for image, found in zip(images, triplets, strict=True)
    ]


def surveyed_stable_rank(missed: Missed) -> StableRank:
    """Return what a survey's measurements say of the stable rank, at no product.

    What its basis holds of ‖J‖_F² is exact; of the rest nothing is assumed, which only widens the interval. σ_1 lies
    in an interval of its own: both hold with at least the sum of their probabilities less 1.

    Parameters
    ----------
    missed : Missed

    Returns
    -------
    StableRank
        ``confidence`` is that of both intervals together.
    """
    low, high = missed.sigma_1
    chance = CONFIDENCE + missed.confidence - 1
    if low == 0:
        return StableRank(0.0, (0.0, 0.0), chance)
    total = missed.frobenius**2
    rest = missed.share * total
    least, most = rest_interval(rest, missed.probes, math.inf, CONFIDENCE)
    return StableRank(
        value=total / float(missed.values[0]) ** 2,
        interval=(max((total - rest + least) / high**2, 1.0), (total - rest + most) / low**2),
        confidence=chance,
    )


def _estimate(
    image: Tensor, drawn: Tensor, found: MeasuredTriplets, confidence: float, dtype: torch.dtype
) -> StableRank:
    eps = epsilon_at(dtype, float(image.double().norm()) / len(image) ** 0.5, image.shape[1])
    residuals = torch.as_tensor(found.residuals, dtype=torch.float64, device="cpu")
    in_order, triplets = Status(found.status).ended_well, (found.U, found.S, found.V, residuals)
    total, unit = frobenius_interval(image, drawn, *triplets, confidence, eps, in_order=in_order)
    shorter = min(found.U.shape[0], found.V.shape[0])
    rank = stable_rank_interval(total, unit, found.S, residuals, eps, in_order=in_order, rank=shorter)
    return StableRank(rank.value, (rank.low, rank.high), confidence)
