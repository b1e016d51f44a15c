"""What a basis of left vectors lacks of an operator, measured by random cotangents that had no part in choosing it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from detjac_lanczos.by_value import sent_by_value
from detjac_lanczos.solvers.basis import complete_block, project_out, random_rows
from detjac_lanczos.solvers.overlap import held_share
from detjac_lanczos.solvers.streams import Stream
from detjac_lanczos.solvers.wording import values_in_line

CONFIDENCE = 0.99
FLAG_LEVEL = 0.05


@dataclass(frozen=True, eq=False)
class Cotangents:
    """Random cotangents outside a basis Q (m × d_out): with ω, p × d_out, standard normal, ω (I - QᵀQ) = L W.

    Attributes
    ----------
    rows : Tensor, shape (r, d_out), r = min(p, d_out - m)
        W, orthonormal and, given Q, uniformly distributed: in directions that do not depend on L.
    factor : Tensor, shape (p, r), float64
        L.
    """

    rows: Tensor
    factor: Tensor

    @classmethod
    def outside(cls, basis: Tensor, probes: int, seed: int) -> "Cotangents":
        """Draw p = ``probes`` of them from a stream of their own."""
        drawn = project_out(random_rows(probes, basis.double(), Stream.SURVEY.generator(seed)), basis.double())
        rank = min(probes, basis.shape[1] - basis.shape[0])
        rows = complete_block(
            torch.linalg.qr(drawn.T).Q.T[:rank], basis.double(), rank, torch.Generator().manual_seed(seed)
        )
        return cls(rows.to(basis.dtype), drawn @ rows.T)


@sent_by_value("basis")
@dataclass(frozen=True, eq=False, repr=False)
class Missed:
    """What a survey's basis Q lacks of one operator A, measured by fresh random cotangents that chose nothing.

    With P = I - QᵀQ, of rank d, and r orthonormal rows W, uniformly distributed in the range of P
    (:class:`Cotangents`), ‖W e‖² / ‖e‖² is Beta(r/2, (d - r)/2) for every e = P e that knows nothing of W: it is the
    part of a uniform unit vector that its first r entries hold. The products W A give

    - ‖P A‖_F² without bias, as the mean of ‖Aᵀ P ω‖² over the p normal ω of which W is made (Girard 1989; Hutchinson
      1989);
    - ρ_R = ‖A v - σ u‖ = ‖P A v‖ of a triplet (σ u = QᵀQ A v), as √(d/r) ‖W A v‖;
    - a lower bound of σ_1 that holds for certain, ‖[Q A; W A]‖₂: the rows of Q and W are orthonormal;
    - an upper bound. For the right vector v_1 of σ_1, which knows nothing of W, ‖W A v_1‖² is at least b ‖P A v_1‖²
      with probability 1 - δ/N, b the δ/N-quantile of that Beta. Then
      σ_1² = ‖Q A v_1‖² + ‖P A v_1‖² ≤ ‖[Q A; W A / √b]‖₂². Over the N operators of a survey, which share W, these
      probabilities to fail add up to δ at most (Boole): with probability 1 - δ *all* bounds hold.

    Attributes
    ----------
    share : float
        Estimate of ‖P A‖_F² / ‖A‖_F².
    frobenius : float
        Estimate of ‖A‖_F.
    residuals : Tensor, shape (k,), float64
        Estimates of ρ_R, absolute; their squares have the spread of that Beta.
    values : Tensor, shape (k,), float64
        Estimates of ‖A v_j‖ = √(s_j² + ρ_R²), nearer to σ_j than the lower bound s_j; in the order of the s_j, and
        they themselves need not descend. What remains of the gap σ_1 - s_1 is random error, about √(2/r) of it, and
        what rotating v_1 would still gain. The estimate may lie on either side of σ_j and has no error bound. That of
        σ_1 is moved into ``sigma_1`` where it lies outside: up to a lower end that is certain, which only brings it
        nearer to σ_1; above the upper end it can be by rounding alone.
    sigma_1 : (float, float)
        Holds σ_1: the lower end always, the upper end with probability ``confidence``.
    confidence : float
        1 - δ, for the upper ends of all operators of the survey together.
    operators : int
        N.
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
    operators: int
    probes: int
    basis: Tensor

    @property
    def doubt(self) -> float:
        """How far the estimate of σ_1 may be off, relative to σ_1."""
        return largest_error(float(self.values[0]), *self.sigma_1)

    @property
    def flagged(self) -> bool:
        """Whether the estimate of σ_1, ``values[0]``, may be off by more than 5 %: worth a polish."""
        return self.doubt > FLAG_LEVEL

    def __repr__(self) -> str:
        """Return one line: the estimates, the interval of σ_1, and whether it is wide."""
        low, high = self.sigma_1
        flagged = ", flagged" if self.flagged else ""
        values = values_in_line(self.values)
        return f"Missed(values=[{values}], sigma_1=({low:.4g}, {high:.4g}), confidence={self.confidence:g}{flagged})"


def largest_error(estimate: float, low: float, high: float) -> float:
    """Return the largest |estimate / σ - 1| over all σ of an interval."""
    above = estimate / low - 1.0 if low > 0.0 else math.inf if estimate > 0.0 else 0.0
    return max(above, 1.0 - estimate / high if high > 0.0 else 0.0)


def measure_missed(
    known: Tensor,
    values: Tensor,
    right: Tensor,
    outside: Tensor,
    cotangents: Cotangents,
    basis: Tensor,
    *,
    operators: int,
    scale: float,
    floor: float,
) -> Missed:
    """Measure what a basis Q lacks of A.

    Parameters
    ----------
    known : Tensor, shape (m, d_in)
        Q A, times ``scale``.
    values, right : Tensor, shape (k,) and (k, d_in)
        Leading singular values and right vectors of ``known``.
    outside : Tensor, shape (r, d_in)
        W A, times ``scale``.
    cotangents : Cotangents
        W, drawn after Q was chosen.
    basis : Tensor, shape (m, d_out)
        Q.
    operators : int
        For how many operators the bounds have to hold together.
    scale : float
    floor : float
        What rounding of the operator can do, absolute: the bounds of σ_1 are moved apart by it.
    """
    probes, rank = cotangents.factor.shape
    room = basis.shape[1] - basis.shape[0]
    known, outside, right = known.double(), outside.double(), right.double()
    captured = float(known.square().sum())
    rest = float((cotangents.factor.to(outside) @ outside).square().sum()) / probes
    squares = (right @ outside.T).square().sum(dim=1) * (room / max(rank, 1))
    estimates = (values.double().square() + squares).sqrt()
    rows = torch.cat([known, outside])
    gram = rows @ rows.T
    raised = torch.ones_like(gram[0])
    raised[len(known) :] = 1.0 / math.sqrt(held_share(rank, room, (1.0 - CONFIDENCE) / operators))
    low = max(float(values[0]), _norm(gram))
    high = max(low, _norm(raised[:, None] * gram * raised))
    low, high = max(low / scale - floor, 0.0), high / scale + floor
    estimates = estimates / scale
    estimates[0] = estimates[0].clamp(low, high)
    return Missed(
        share=rest / (captured + rest) if captured + rest > 0.0 else 0.0,
        frobenius=math.sqrt(captured + rest) / scale,
        residuals=squares.sqrt() / scale,
        values=estimates,
        sigma_1=(low, high),
        confidence=CONFIDENCE,
        operators=operators,
        probes=probes,
        basis=basis,
    )


def _norm(gram: Tensor) -> float:
    return math.sqrt(max(float(torch.linalg.eigvalsh(gram)[-1]), 0.0))
