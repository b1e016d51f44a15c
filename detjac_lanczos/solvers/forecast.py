"""What both methods are expected to take, before either is begun."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from detjac_lanczos.solvers.sides import writing_ways
from detjac_lanczos.solvers.width import expected_columns, expected_passes

_CLEAR = 2.0

_DECOMPOSITIONS = 2
"""SVDs that a pass of Lanczos takes: of the projected operator, and of residuals or products for the next block."""

_TURN_SECONDS = 7e-4
"""What a pass takes for one operator besides arithmetic."""

_SLOW = 128
"""Rows below which an SVD takes the time of m² · 128, and no longer that of m³."""


@dataclass(frozen=True)
class Forecast:
    """Predicted row-sweeps, passes and work of both methods.

    Work is what the solver does besides the products, in the unit of an SVD: that of n × n takes n³. Turns are passes
    of one operator.
    """

    lanczos_rows: float
    dense_rows: float
    lanczos_passes: float
    dense_passes: float
    lanczos_turns: float
    lanczos_work: float
    dense_work: float

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
        """Whether it is not clear from the count alone, of row-sweeps or of work, that Lanczos is faster."""
        return max(self.ratio, self.lanczos_work / self.dense_work) > 1.0 / _CLEAR

    def seconds(self, per_pass: float, per_row: float, svds: float, per_work: float) -> tuple[float, float]:
        """Return the time of Lanczos and of dense, by prices: a pass, a row-sweep, the SVDs of dense and other work."""
        lanczos, dense = self.product_seconds(per_pass, per_row)
        return lanczos + self.work_seconds(per_work), dense + svds

    def product_seconds(self, per_pass: float, per_row: float) -> tuple[float, float]:
        """Return the time of the sweeps of Lanczos and of dense."""
        lanczos = self.lanczos_passes * per_pass + self.lanczos_rows * per_row
        return lanczos, self.dense_passes * per_pass + self.dense_rows * per_row

    def work_seconds(self, per_work: float) -> float:
        """Return the time of what Lanczos does besides its sweeps."""
        return work_seconds(self.lanczos_work, self.lanczos_turns, per_work)

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
    turns = [expected_passes(columns, width) for columns in searched]
    return Forecast(
        lanczos_rows=sum(cost * sum(columns) for cost, *columns in zip(costs, searched, measured, strict=True)),
        dense_rows=writing_ways(shapes, costs, shared_cost)[1],
        lanczos_passes=expected_passes(max(searched), width) + (2.0 if any(measured) else 0.0),
        dense_passes=dense_passes,
        lanczos_turns=sum(turns),
        lanczos_work=sum(
            search_work(columns, passes, k, shape)
            for columns, passes, shape in zip(searched, turns, shapes, strict=True)
        ),
        dense_work=float(sum(min(shape) * math.prod(shape) for shape in shapes)),
    )


def search_work(columns: float, passes: float, k: int, shape: tuple[int, int]) -> float:
    """Return the work of a search.

    A pass beside bases of m vectors takes SVDs of m × m; 4 k m (d_out + d_in) multiplications to make Ritz triplets and
    their residuals, which is the time of a half k m (d_out + d_in) in those of an SVD; and 10 m b d to make its block
    orthonormal, the time of m b d. With triplets in every pass, as if there were k from the first on, that comes to
    0.6 to 1.8 times what 13 searches of 45 to 634 columns took on Zen 4.
    """
    bases = columns / 2.0  # at the end; half of it on the way
    cubes = _SLOW * bases**3 / 3.0 if bases < _SLOW else bases**4 / 4.0 + _SLOW**4 / 12.0
    small = _DECOMPOSITIONS * passes / bases * cubes if columns else 0.0
    return small + bases * sum(shape) * (passes * k / 4.0 + bases / 2.0)


def work_seconds(work: float, turns: float, per_work: float) -> float:
    """Return the time of so much work in so many turns."""
    return work * per_work + turns * _TURN_SECONDS


def _columns(k: int, tol: float, width: int, shape: tuple[int, int]) -> tuple[float, float]:
    """Return the columns of a search, and those that measure its triplets where it ends with a whole space."""
    columns, whole = expected_columns(k, tol, width, shape), 2.0 * min(shape)
    return (whole, 2.0 * k) if columns >= whole else (columns, 0.0)
