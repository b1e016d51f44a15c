"""‖A‖_F and the stable rank as intervals: what triplets hold is known, what they leave is measured by random probes."""

import math
from dataclasses import dataclass

from torch import Tensor, float64, stack

from detjac_lanczos.solvers.rounding import safe_scale
from detjac_lanczos.solvers.trace_interval import rest_interval


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its interval.

    Attributes
    ----------
    value, low, high : float
        In the unit of what is estimated.
    """

    value: float
    low: float
    high: float


def frobenius_interval(
    image: Tensor, drawn: Tensor, U: Tensor, S: Tensor, V: Tensor, residuals: Tensor, confidence: float
) -> tuple[Interval, float]:
    """Return ‖A‖_F times a power of two, and that power.

    ‖A‖_F² = Σ s_j² + ‖A - U S Vᵀ‖_F² for s_j = u_jᵀ A v_j. The interval assumes that no value above s_k + ‖residuals‖
    was missed, and nothing where residuals are unknown.

    Parameters
    ----------
    image : Tensor, shape (probes, d_in)
        Aᵀ ω of each probe.
    drawn : Tensor, shape (probes, d_out)
        The probes ω, standard normal.
    U, S, V : Tensor, shape (d_out, k), (k,) descending, (d_in, k)
    residuals : Tensor, shape (k, 2)
        ‖A v - σ u‖ and ‖Aᵀ u - σ v‖, absolute; not finite where unknown.
    confidence : float
    """
    image, drawn, U, S, V = (part.to(image.device, float64) for part in (image, drawn, U, S, V))
    unit = safe_scale(stack([image.abs().max(), S.max()]))
    image, S = image * unit, S * unit
    rest = image - drawn @ U * S @ V.T
    known, mean = float(S.square().sum()), float(rest.square().sum()) / len(drawn)
    residual = float((residuals * unit).square().sum(dim=0).max()) ** 0.5
    largest = (float(S[-1]) + residual) ** 2 if math.isfinite(residual) else math.inf
    low, high = rest_interval(mean, len(drawn), largest, confidence)
    return Interval(*(math.sqrt(known + part) for part in (mean, low, high))), unit


def stable_rank_interval(
    frobenius: Interval, unit: float, S: Tensor, residuals: Tensor, upper: float | None = None
) -> Interval:
    """Return ‖A‖_F² / σ_1², of ‖A‖_F times ``unit`` and triplets as in :func:`frobenius_interval`.

    σ_1 lies between s_1 and ``upper``: without it, s_1 + its residual, beyond which nothing is assumed to be missed.
    """
    smallest = float(S[0]) * unit
    if upper is None:
        residual = float(residuals[0].max())
        upper = float(S[0]) + (residual if math.isfinite(residual) else math.inf)
    if smallest == 0.0:
        return Interval(0.0, 0.0, 0.0 if frobenius.high == 0.0 else math.inf)
    ratios = (frobenius.value / smallest, frobenius.low / (upper * unit), frobenius.high / smallest)
    return Interval(*(ratio * ratio for ratio in ratios))
