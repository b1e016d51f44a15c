"""How well Jacobians give the output they were taken at."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Reconstruction:
    """How well a sum of Jacobians times inputs gives the nonlinear output.

    ``relative_error`` is std(ŷ − y) / std(y), as in the paper; ``norm_error`` is ‖ŷ − y‖ / ‖y‖; ``offset_share`` is
    ‖offset‖ / ‖y‖.
    """

    y: Tensor = field(repr=False)
    estimate: Tensor = field(repr=False)
    relative_error: float
    norm_error: float
    offset_share: float

    @classmethod
    def of(cls, y: Tensor, estimate: Tensor, offset: Tensor) -> Reconstruction:
        """Compare an estimate with y, all (d_out,)."""
        truth, error = y.double(), estimate.double() - y.double()
        return cls(
            y=y,
            estimate=estimate,
            relative_error=float(error.std() / truth.std()),
            norm_error=float(error.norm() / truth.norm()),
            offset_share=float(offset.double().norm() / truth.norm()),
        )
