"""What a basis of left vectors lacks of an operator, measured by random cotangents that had no part in choosing it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from detjac_lanczos.solvers.trace_interval import chi_square_quantile

CONFIDENCE = 0.99
FLAG_LEVEL = 0.05


@dataclass(frozen=True)
class Missed:
    """What a survey's basis Q lacks of one operator A, measured by fresh random cotangents that chose nothing.

    With P = I - QᵀQ and p independent standard normal ω, the rows Z = ωᵀ P A give

    - ‖P A‖_F², as the mean of ‖Aᵀ P ω‖² (Girard 1989; Hutchinson 1989), unbiased;
    - ρ_R = ‖A v - σ u‖ = ‖P A v‖ of a triplet (σ u = QᵀQ A v), as the root of the mean of (ωᵀ P A v)²;
    - a bound of σ_1. For its right vector v_1, which knows nothing of ω, ‖Z v_1‖² is ‖P A v_1‖² χ²_p, so that with
      probability 1 - δ it is at least q ‖P A v_1‖², q the δ-quantile of χ²_p. Then
      σ_1² = ‖Q A v_1‖² + ‖P A v_1‖² ≤ ‖[Q A; Z / √q]‖₂².

    Attributes
    ----------
    share : float
        Estimate of ‖P A‖_F² / ‖A‖_F².
    frobenius : float
        Estimate of ‖A‖_F.
    residuals : Tensor, shape (k,), float64
        Estimates of ρ_R, absolute; their squares have χ²_p spread.
    values : Tensor, shape (k,), float64
        Estimates of ‖A v_j‖ = √(s_j² + ρ_R²), nearer to σ_j than the lower bound s_j: of what s_1 lacks, √(2/p)
        times as much is left as chance, and what turning v_1 would add. On either side of σ_j, and without a bound.
    sigma_1 : (float, float)
        Holds σ_1: the lower end always, up to rounding, the upper end with probability ``confidence``.
    confidence : float
        1 - δ, for this operator alone: operators of one survey share their probes.
    probes : int
        p.
    basis : Tensor, shape (m, d_out)
        Q, one tensor for all operators of a survey.
    """

    share: float
    frobenius: float
    residuals: Tensor
    values: Tensor
    sigma_1: tuple[float, float]
    confidence: float
    probes: int
    basis: Tensor

    @property
    def flagged(self) -> bool:
        """Whether the value found for σ_1 may lack more than 5 % of it: such operators are worth a polish."""
        return is_flagged(*self.sigma_1)


def is_flagged(low: float, high: float) -> bool:
    """Whether an interval of σ_1 leaves room for more than 5 % above what was found."""
    return low < (1.0 - FLAG_LEVEL) * high


def measure_missed(
    known: Tensor, values: Tensor, right: Tensor, outside: Tensor, basis: Tensor, *, scale: float, floor: float
) -> Missed:
    """Measure what a basis Q lacks of A.

    Parameters
    ----------
    known : Tensor, shape (m, d_in)
        Q A, times ``scale``.
    values, right : Tensor, shape (k,) and (k, d_in)
        Leading singular values and right vectors of ``known``.
    outside : Tensor, shape (p, d_in)
        ωᵀ (I - QᵀQ) A for p independent standard normal ω, drawn after Q was chosen, times ``scale``.
    basis : Tensor, shape (m, d_out)
        Q.
    scale : float
    floor : float
        What rounding of the operator can do, absolute: the bound of σ_1 is raised by it.
    """
    probes = outside.shape[0]
    known, outside, right = known.double(), outside.double(), right.double()
    captured, rest = float(known.square().sum()), float(outside.square().sum()) / probes
    enlarged = torch.cat([known, outside / math.sqrt(chi_square_quantile(probes, 1.0 - CONFIDENCE))])
    highest = math.sqrt(max(float(torch.linalg.eigvalsh(enlarged @ enlarged.T)[-1]), 0.0))
    low, squares = float(values[0]), (right @ outside.T).square().mean(dim=1)
    return Missed(
        share=rest / (captured + rest) if captured + rest > 0.0 else 0.0,
        frobenius=math.sqrt(captured + rest) / scale,
        residuals=squares.sqrt() / scale,
        values=(values.double().square() + squares).sqrt() / scale,
        sigma_1=(low / scale, max(low, highest) / scale + floor),
        confidence=CONFIDENCE,
        probes=probes,
        basis=basis,
    )
