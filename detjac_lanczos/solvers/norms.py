"""Norms of an operator as intervals from random probes, the leading triplets removed first; exact on request."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detjac_lanczos.by_value import sent_by_value
from detjac_lanczos.errors import InputError
from detjac_lanczos.solvers.basis import project_out, random_rows
from detjac_lanczos.solvers.batch import as_batch
from detjac_lanczos.solvers.counting import CountingBatch
from detjac_lanczos.solvers.deflated_norm import Interval, frobenius_interval, stable_rank_interval
from detjac_lanczos.solvers.materialisation import Materialisation
from detjac_lanczos.solvers.operator import Direction
from detjac_lanczos.solvers.options import check_k, check_seed
from detjac_lanczos.solvers.result import SVDResult, check_results
from detjac_lanczos.solvers.room import require_room
from detjac_lanczos.solvers.rounding import powers_of_two, rounding_of, safe_scale
from detjac_lanczos.solvers.streams import Stream
from detjac_lanczos.solvers.trace_interval import check_probes, chi_square_factors


@sent_by_value()
@dataclass(frozen=True, eq=False)
class Lengths:
    """Estimates of many lengths and the ends of their intervals, float64; each interval holds by itself.

    Attributes
    ----------
    value, low, high : Tensor, shape (d_out,) of rows, (d_in,) of columns
    """

    value: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True, repr=False)
class Norms:
    """Norms of an operator A (d_out × d_in).

    Squares are taken in units of a power of two. A length above the largest float64 is inf, between that and inf.

    Attributes
    ----------
    frobenius : Interval
        ‖A‖_F.
    stable_rank : Interval
        ‖A‖_F² / σ_1²; its value is NaN where no triplet was found.
    rows, columns : Lengths or None
        ‖Aᵀ e_i‖, ``(d_out,)``, and ‖A e_j‖, ``(d_in,)``; None where neither they nor the whole matrix were asked for.
    confidence : float
        Probability over the probes that any one interval holds; 1 where the matrix was written out.
    probes : int
        Random vectors used each way.
    """

    frobenius: Interval
    stable_rank: Interval
    rows: Lengths | None
    columns: Lengths | None
    confidence: float
    probes: int

    def __repr__(self) -> str:
        """Return one line: the two norms with their intervals, and of how many rows and columns lengths are there."""
        total, rank = (f"{one.value:.4g} ({one.low:.4g}, {one.high:.4g})" for one in (self.frobenius, self.stable_rank))
        sides = (("rows", self.rows), ("columns", self.columns))
        lengths = "".join(f", {len(side.value)} {name}" for name, side in sides if side is not None)
        return f"Norms(frobenius={total}, stable_rank={rank}{lengths}, confidence={self.confidence:g})"


def norms(
    A: Any,
    triplets: SVDResult | None = None,
    *,
    lengths: bool = False,
    exact: bool = False,
    probes: int = 16,
    confidence: float = 0.95,
    seed: int = 0,
) -> Norms:
    """Estimate ‖A‖_F, the stable rank and, on request, the length of every row and column of an operator.

    The part of A that the triplets hold is known; what is left is measured by independent standard normal ω:

    - ‖A‖_F² and the stable rank by (A - U S Vᵀ)ᵀ ω; what their intervals assume of the triplets says
      :func:`~detjac_lanczos.solvers.deflated_norm.frobenius_interval`.
    - ‖Aᵀ e_i‖² = ‖(A V)ᵀ e_i‖² + ‖(A (I - V Vᵀ))ᵀ e_i‖², and (A (I - V Vᵀ) ω)_i² is χ²_1 times the second term:
      these intervals rest on nothing but the probes. Columns the same way, with U and Aᵀ.

    Intervals hold what rounding may do besides. Of a row, the root of either term is off by c ε times its length, as a
    scalar product with it is. Where an operator spreads the rounding of earlier steps over all rows, those shorter than
    that are not known.

    Parameters
    ----------
    A : LinearOperator, or what :func:`as_operator` takes
    triplets : SVDResult
        Of A, by any method. Not needed for ``exact``.
    lengths : bool
        Rows and columns too: another k + ``probes`` products each way.
    exact : bool
        Write the matrix out, by d_out products with Aᵀ, or d_in with A where these are fewer, and compute everything
        from it, rows and columns too.
    probes : int
        Products with Aᵀ.
    confidence : float
        Of each interval alone.
    seed : int
        From 0 to 2³² - 1.

    Returns
    -------
    Norms

    Raises
    ------
    InputError
        There are several operators, one has no rows or no columns, triplets are missing or do not fit, so few probes
        prove no interval of this confidence, or memory does not hold the matrix that is to be written out.
    OperatorError
        A product is not finite, or has the wrong shape, dtype or device.
    """
    batch = as_batch(A)
    if len(batch.shapes) != 1:
        raise InputError(f"norms takes one operator, these are {len(batch.shapes)}: give them to norms_batch")
    given = None if triplets is None else [triplets]
    return norms_batch(batch, given, lengths=lengths, exact=exact, probes=probes, confidence=confidence, seed=seed)[0]


def norms_batch(
    batch: Any,
    triplets: Sequence[SVDResult] | None = None,
    *,
    lengths: bool = False,
    exact: bool = False,
    probes: int = 16,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Norms]:
    """Estimate norms of every operator of a batch; operators of one output space share the probes of ‖A‖_F.

    Parameters
    ----------
    batch : OperatorBatch, or a sequence of what :func:`norms` takes
    triplets : sequence of SVDResult
        One for each operator. Not needed for ``exact``.
    lengths, exact, probes, confidence, seed
        As in :func:`norms`.

    Returns
    -------
    list of Norms
        One for each operator.

    Raises
    ------
    InputError, OperatorError
        As :func:`norms`.
    """
    counted = CountingBatch(as_batch(batch))
    check_k(counted.shapes, None)
    with torch.no_grad(), torch.autocast(counted.device.type, enabled=False):
        if exact:
            require_room(counted.shapes, counted.dtype, counted.device, decomposed=False)
            return [_exact(matrix) for matrix in counted.finite(Materialisation(counted).run())]
        check_probes(probes, confidence)
        check_seed(seed)
        found = _fitting(counted, triplets)
        generator = Stream.NORMS.generator(int(seed))
        totals = _frobenius(counted, found, probes, confidence, generator)
        rows: list[Lengths | None] = [None] * len(counted)
        columns = list(rows)
        if lengths:
            rows = _lengths(counted, Direction.FORWARD, [one.V for one in found], probes, confidence, generator)
            columns = _lengths(counted, Direction.TRANSPOSED, [one.U for one in found], probes, confidence, generator)
    results = []
    for index, ((total, unit), one, row, column) in enumerate(zip(totals, found, rows, columns, strict=True)):
        upper = math.inf if one.missed is None else one.missed.sigma_1[1]
        eps, in_order = counted.epsilon(index, total.value / unit), one.status.ended_well
        rank = min(counted.shapes[index])
        ratio = stable_rank_interval(total, unit, one.S, one.residuals, eps, in_order=in_order, rank=rank, upper=upper)
        results.append(Norms(_in_units(total, unit), ratio, row, column, confidence, probes))
    return results


def _frobenius(
    batch: CountingBatch,
    triplets: Sequence[SVDResult],
    probes: int,
    confidence: float,
    generator: torch.Generator,
) -> list[tuple[Interval, float]]:
    """Return ‖A‖_F of each operator times a power of two, and that power."""
    heights = [d_out for d_out, _ in batch.shapes]
    drawn = torch.randn(probes, max(heights), dtype=torch.float64, device="cpu", generator=generator)
    drawn = drawn.to(batch.device, batch.dtype)
    if batch.one_output_space:
        images = batch.apply_shared(drawn)
    else:
        images = batch.apply(Direction.TRANSPOSED, [(i, drawn[:, :height]) for i, height in enumerate(heights)])
    totals = []
    for index, (image, one) in enumerate(zip(batch.finite(images), triplets, strict=True)):
        eps = batch.epsilon(index, float(image.double().norm()) / probes**0.5)
        probed = drawn[:, : heights[index]]
        found, in_order = (one.U, one.S, one.V, one.residuals), one.status.ended_well
        totals.append(frobenius_interval(image, probed, *found, confidence, eps, in_order=in_order))
    return totals


def _lengths(
    batch: CountingBatch,
    direction: Direction,
    bases: Sequence[Tensor],
    probes: int,
    confidence: float,
    generator: torch.Generator,
) -> list[Lengths | None]:
    blocks = []
    for index, basis in enumerate(bases):
        known = basis.T.to(batch.device, batch.dtype)
        drawn = random_rows(probes, known, generator)
        blocks.append((index, torch.cat([known, project_out(drawn, known)])))
    low_factor, high_factor = chi_square_factors(probes, confidence)
    found: list[Lengths | None] = []
    for index, (product, basis) in enumerate(zip(batch.finite(batch.apply(direction, blocks)), bases, strict=True)):
        product = product.double()
        share = rounding_of(batch.epsilon(index, float(product.norm(dim=1).max())), 1.0)
        units = powers_of_two(product.abs().amax(dim=0))
        squares = (product / units).square()
        known, rest = squares[: basis.shape[1]].sum(dim=0).sqrt(), squares[basis.shape[1] :].mean(dim=0).sqrt()
        value = known.hypot(rest)
        noise = share * value
        low = (known - noise).clamp_min(0.0).hypot(low_factor**0.5 * (rest - noise).clamp_min(0.0))
        high = (known + noise).hypot(high_factor**0.5 * (rest + noise))
        found.append(_proven(Lengths(*(part * units for part in (value, low, high)))))
    return found


def _in_units(length: Interval, unit: float) -> Interval:
    """Return a length that was measured on ``unit`` times the operator."""
    value, low, high = (part / unit for part in (length.value, length.low, length.high))
    return Interval(value, min(low, sys.float_info.max), high)


def _proven(lengths: Lengths) -> Lengths:
    """Return lengths whose lower ends are finite: one that overflows is above the largest number, and no more."""
    return Lengths(lengths.value, lengths.low.clamp_max(sys.float_info.max), lengths.high)


def _exact(matrix: Tensor) -> Norms:
    matrix = matrix.double()
    unit = safe_scale(matrix)
    scaled = matrix * unit
    total, first = float(torch.linalg.matrix_norm(scaled)), float(torch.linalg.matrix_norm(scaled, ord=2))
    rank = (total / first) ** 2 if first > 0.0 else 0.0
    rows, columns = _lengths_of(matrix), _lengths_of(matrix.T)
    return Norms(
        _in_units(Interval(total, total, total), unit),
        Interval(rank, rank, rank),
        _proven(Lengths(rows, rows, rows)),
        _proven(Lengths(columns, columns, columns)),
        confidence=1.0,
        probes=0,
    )


def _lengths_of(rows: Tensor) -> Tensor:
    """Return the length of each row, each in units of its own: one may be 1e200 times another."""
    units = powers_of_two(rows.abs().amax(dim=1))
    return (rows / units[:, None]).norm(dim=1) * units


def _fitting(batch: CountingBatch, triplets: Sequence[SVDResult] | None) -> Sequence[SVDResult]:
    if triplets is None:
        raise InputError("norms need the leading triplets: pass what svd found, or exact=True to write the matrix out")
    check_results(triplets)
    if len(triplets) != len(batch):
        raise InputError(f"{len(triplets)} results for {len(batch)} operators: give one for each")
    for index, (one, (d_out, d_in)) in enumerate(zip(triplets, batch.shapes, strict=True)):
        known = bool(one.S.isfinite().all())
        if one.U.shape[0] != d_out or one.V.shape[0] != d_in or not known:
            raise InputError(
                f"result {index} has no triplets of an operator of shape ({d_out}, {d_in}): solve it again"
            )
    return triplets
