"""What both methods are expected to take, before either is begun."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detjac_lanczos.solvers.sides import writing_ways
from detjac_lanczos.solvers.width import expected_columns, expected_passes

_CLEAR = 2.0


@dataclass(frozen=True)
class Forecast:
    """Predicted row-sweeps and passes of both methods."""

    lanczos_rows: float
    dense_rows: float
    lanczos_passes: float
    dense_passes: float

    @property
    def ratio(self) -> float:
        """Row-sweeps of Lanczos over those of dense."""
        return self.lanczos_rows / self.dense_rows

    @property
    def may_be_lanczos(self) -> bool:
        """Whether it is not clear from the count alone that dense is faster."""
        return self.ratio < _CLEAR

    @property
    def may_be_dense(self) -> bool:
        """Whether it is not clear from the count alone that Lanczos is faster."""
        return self.ratio > 1.0 / _CLEAR

    def seconds(self, per_pass: float, per_row: float) -> tuple[float, float]:
        """Return the time of the sweeps of Lanczos and of dense, at a price of a pass and of a row-sweep."""
        lanczos = self.lanczos_passes * per_pass + self.lanczos_rows * per_row
        return lanczos, self.dense_passes * per_pass + self.dense_rows * per_row

    @property
    def sentence(self) -> str:
        """The row-sweeps in words."""
        return f"{self.lanczos_rows:,.0f} row-sweeps expected against {self.dense_rows:,.0f} of dense"


def forecast(
    shapes: Sequence[tuple[int, int]],
    costs: Sequence[float],
    shared_cost: float,
    *,
    k: int,
    tol: float,
    width: int,
    dense_passes: int,
) -> Forecast:
    """Predict the work of both methods from shapes, costs, k, tol and width.

    Parameters
    ----------
    shapes : sequence of (d_out, d_in)
    costs : sequence of float
        Row-sweeps of one column of each operator.
    shared_cost : float
        Those of one cotangent that all of them share.
    k, tol, width
        As in `svd`.
    dense_passes : int
        Sweeps that the dense method has still to make.
    """
    searched, measured = zip(*(_columns(k, tol, width, shape) for shape in shapes), strict=True)
    return Forecast(
        lanczos_rows=sum(cost * sum(columns) for cost, *columns in zip(costs, searched, measured, strict=True)),
        dense_rows=writing_ways(shapes, costs, shared_cost)[1],
        lanczos_passes=expected_passes(max(searched), width) + (2.0 if any(measured) else 0.0),
        dense_passes=dense_passes,
    )


def _columns(k: int, tol: float, width: int, shape: tuple[int, int]) -> tuple[float, float]:
    """Return the columns of a search, and those that measure its triplets where it ends with a whole space."""
    columns, whole = expected_columns(k, tol, width, shape), 2.0 * min(shape)
    return (whole, 2.0 * k) if columns >= whole else (columns, 0.0)
