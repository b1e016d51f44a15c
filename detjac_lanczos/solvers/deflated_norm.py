"""‖A‖_F and the stable rank as intervals: what triplets hold is known, what they leave is measured by random probes."""

import math
from dataclasses import dataclass

from torch import Tensor, cat, float64

from detjac_lanczos.solvers.rounding import rounding_of, safe_scale
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
    image: Tensor,
    drawn: Tensor,
    U: Tensor,
    S: Tensor,
    V: Tensor,
    residuals: Tensor,
    confidence: float,
    eps: float,
    *,
    in_order: bool,
) -> tuple[Interval, float]:
    """Return ‖A‖_F times a power of two, and that power.

    ‖A‖_F² = Σ s_j² + ‖A - U S Vᵀ‖_F² for s_j = u_jᵀ A v_j, as Ritz values are, and ‖(A - U S Vᵀ)ᵀ ω‖² is an unbiased
    estimate of the second term (Girard 1989; Hutchinson 1989; removing the leading part first: Meyer, Musco, Musco,
    Woodruff, "Hutch++", 2021). Where the triplets were found ``in_order`` the interval assumes that no value above
    s_k + ‖residuals‖ was missed (:func:`~detjac_lanczos.solvers.trace_interval.rest_interval`), and nothing where they
    were not, where residuals are unknown, or there are no triplets: ‖A‖_F is then all that bounds σ_1.

    Its ends hold what rounding may do. A product of an operator in precision ε is off by c ε times its length: each s_j
    by c ε s_j, hence ‖S‖ by c ε ‖S‖; and (A - U S Vᵀ)ᵀ ω by c ε ‖Aᵀ ω‖, hence the root of the mean square over the
    probes by c ε times that of ‖Aᵀ ω‖.

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
    eps : float
        ε of the products.
    in_order : bool
        Whether the search ended well. A residual alone says that *some* value is that near.
    """
    image, drawn, U, S, V = (part.to(image.device, float64) for part in (image, drawn, U, S, V))
    unit = safe_scale(cat([image.flatten(), S]))
    image, S = image * unit, S * unit
    rest = image - drawn @ U * S @ V.T
    known, root, length = (float(part.norm()) for part in (S, rest / len(drawn) ** 0.5, image / len(drawn) ** 0.5))
    residual = float((residuals * unit).square().sum(dim=0).max()) ** 0.5
    largest = (float(S[-1]) + residual) ** 2 if in_order and len(S) and math.isfinite(residual) else math.inf
    share = rounding_of(eps, 1.0)
    noise = share * length
    low = rest_interval(max(root - noise, 0.0) ** 2, len(drawn), largest, confidence)[0]
    high = rest_interval((root + noise) ** 2, len(drawn), largest, confidence)[1]
    ends = math.sqrt(((1.0 - share) * known) ** 2 + low), math.sqrt(((1.0 + share) * known) ** 2 + high)
    return Interval(math.hypot(known, root), *ends), unit


def stable_rank_interval(
    frobenius: Interval,
    unit: float,
    S: Tensor,
    residuals: Tensor,
    eps: float,
    *,
    in_order: bool,
    rank: int,
    upper: float = math.inf,
) -> Interval:
    """Return ‖A‖_F² / σ_1², of ‖A‖_F times ``unit`` and triplets as in :func:`frobenius_interval`.

    σ_1 is at least the longest product of a unit vector, ‖A v_j‖² = s_j² + ‖A v_j - s_j u_j‖², and at most ``upper``
    and, where the triplets were found in order, s_1 + its residual; either may be off by c ε of it. The ratio is never
    below 1 of an A that is not zero: that alone is known without an upper bound of σ_1. Without triplets, that and
    ``rank``, min(d_out, d_in), which it is never above; there is no estimate then, NaN.
    """
    if frobenius.high == 0.0:
        return Interval(0.0, 0.0, 0.0)
    if not len(S):
        return Interval(math.nan, 1.0 if frobenius.low > 0.0 else 0.0, float(rank))
    share = rounding_of(eps, 1.0)
    lengths = residuals.double().nan_to_num(nan=0.0).amax(dim=1).cpu() * unit
    longest = float(lengths.hypot(S.double().cpu() * unit).max())
    if longest == 0.0:
        return Interval(0.0, 0.0, float(rank))
    residual = float(residuals[0].max())
    if in_order and upper == math.inf and math.isfinite(residual):
        upper = float(S[0]) + residual
    least, most = (1.0 - share) * longest, (1.0 + share) * upper * unit
    ratios = (frobenius.value / longest, frobenius.low / most, frobenius.high / least)
    return Interval(*(max(ratio, 1.0) * max(ratio, 1.0) for ratio in ratios))  # a power would raise where it overflows
