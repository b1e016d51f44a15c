"""How well Jacobians give the output they were taken at."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from detjac_lanczos.by_value import sent_by_value


@sent_by_value()
@dataclass(frozen=True, eq=False)
class Reconstruction:
    """How well a sum of Jacobians times inputs gives the nonlinear output; what is zero is no share of any y.

    Attributes
    ----------
    y : Tensor, shape (d_out,)
        The nonlinear output.
    estimate : Tensor, shape (d_out,)
        ŷ = Σ J_i x_i, with the offset where that is part of the map.
    relative_error : float
        std(ŷ − y) / std(y), as in the paper; of a single entry `norm_error`.
    norm_error : float
        ‖ŷ − y‖ / ‖y‖.
    offset_share : float
        ‖offset‖ / ‖y‖.
    """

    y: Tensor = field(repr=False)
    estimate: Tensor = field(repr=False)
    relative_error: float
    norm_error: float
    offset_share: float

    @classmethod
    def of(cls, y: Tensor, estimate: Tensor, offset: Tensor) -> Reconstruction:
        """Compare an estimate with y.

        Parameters
        ----------
        y, estimate, offset : Tensor, shape (d_out,)

        Returns
        -------
        Reconstruction
            Errors are computed in float64.
        """
        truth, error = y.double(), estimate.double() - y.double()
        norm_error = _share(error.norm(), truth.norm())
        return cls(
            y=y,
            estimate=estimate,
            relative_error=_share(error.std(), truth.std()) if len(truth) > 1 else norm_error,
            norm_error=norm_error,
            offset_share=_share(offset.double().norm(), truth.norm()),
        )


def _share(part: Tensor, whole: Tensor) -> float:
    """Return part / whole; of nothing it is nothing, also where the whole is zero."""
    return float(part / whole) if part else 0.0
