"""Lanczos or dense: counted row-sweeps decide where they can, the first two passes' times where they cannot."""

import math
import time
from dataclasses import dataclass
from functools import lru_cache

import torch

from detjac_lanczos.solvers.counting import CountingBatch
from detjac_lanczos.solvers.dense import chunk_width, solve_dense
from detjac_lanczos.solvers.finish import Road
from detjac_lanczos.solvers.lanczos import conclude
from detjac_lanczos.solvers.lockstep import Lockstep
from detjac_lanczos.solvers.options import Options
from detjac_lanczos.solvers.result import SVDResult

_CLEAR = 2.0
_PROBED_SIZE = 256


@dataclass(frozen=True)
class Forecast:
    """Predicted work of both roads.

    Attributes
    ----------
    lanczos_rows, dense_rows : float
        Row-sweeps.
    lanczos_passes, dense_passes : float
        Sweeps.
    """

    lanczos_rows: float
    dense_rows: float
    lanczos_passes: float
    dense_passes: float

    @property
    def ratio(self) -> float:
        """Row-sweeps of Lanczos over those of dense."""
        return self.lanczos_rows / self.dense_rows


def solve_auto(batch: CountingBatch, options: Options, *, certify: bool) -> list[SVDResult]:
    """Choose the road by counted row-sweeps; where these are close, by the measured time of the first two passes.

    The passes are the Lanczos road's own, so nothing is lost where it is chosen.
    """
    forecast = make_forecast(batch, options)
    counts = f"{forecast.lanczos_rows:.0f} row-sweeps expected against {forecast.dense_rows:.0f} of dense"
    lockstep = Lockstep(batch, options)
    clear = _tiny(batch) or not 1.0 / _CLEAR < forecast.ratio < _CLEAR
    if options.max_products is not None or (clear and forecast.ratio < 1.0):
        return conclude(lockstep, _lanczos_road(options, counts, {}), certify=certify)
    if clear:
        return solve_dense(batch, options, Road("dense", counts, {"method": "dense"}), certify=certify)
    lockstep.advance()
    lockstep.advance()
    per_pass, per_row = sweep_rates(batch.sweeps)
    decompositions = sum(decomposition_seconds(shape, batch.dtype, batch.device) for shape in batch.shapes)
    lanczos = forecast.lanczos_passes * per_pass + forecast.lanczos_rows * per_row
    dense = forecast.dense_passes * per_pass + forecast.dense_rows * per_row + decompositions
    measured = {"seconds_per_pass": per_pass, "seconds_per_row": per_row, "svd_seconds": decompositions}
    why = (
        f"{counts}; a sweep takes {per_pass * 1e3:.1f} ms + {per_row * 1e3:.3f} ms a row and the SVDs "
        f"{decompositions:.2f} s: {lanczos:.2f} s expected against {dense:.2f} s"
    )
    if lanczos <= dense or not lockstep.active:
        return conclude(lockstep, _lanczos_road(options, why, measured), certify=certify)
    return solve_dense(batch, options, Road("dense", why, {"method": "dense", **measured}), certify=certify)


def make_forecast(batch: CountingBatch, options: Options) -> Forecast:
    """Predict the work of both roads from shapes, costs, k, tol and width."""
    columns = [expected_columns(options, shape) for shape in batch.shapes]
    shared = len({d_out for d_out, _ in batch.shapes}) == 1
    tallest = max(d_out for d_out, _ in batch.shapes)
    if shared:
        dense_rows = tallest * batch.shared_cost
        dense_passes = math.ceil(tallest / chunk_width(batch.shared_cost, tallest))
    else:
        dense_rows = sum(cost * d_out for cost, (d_out, _) in zip(batch.costs, batch.shapes, strict=True))
        dense_passes = sum(
            math.ceil(d_out / chunk_width(cost, d_out))
            for cost, (d_out, _) in zip(batch.costs, batch.shapes, strict=True)
        )
    return Forecast(
        lanczos_rows=sum(cost * count for cost, count in zip(batch.costs, columns, strict=True)),
        dense_rows=dense_rows,
        lanczos_passes=max(columns) / options.width * 1.2,
        dense_passes=dense_passes,
    )


def expected_columns(options: Options, shape: tuple[int, int]) -> float:
    """Return the columns both ways that block Golub-Kahan is expected to need.

    A fit to the detached Jacobians of SmolLM2-135M, k from 1 to 32, tol from 1e-2 to 1e-5, width from 1 to 8: within a
    fifth of the mean there.
    """
    digits = max(math.log10(1e-3 / options.tol), -2.0)
    columns = 11.0 * options.k**0.75 * (1.0 + 0.1 * digits) * (1.0 + 0.09 * (options.width - 2))
    return float(min(columns, sum(shape)))


def sweep_rates(sweeps: list[tuple[float, float]]) -> tuple[float, float]:
    """Return seconds a pass and seconds a row from the first two passes' (rows, seconds).

    All time is put on the rows where the passes are too alike to tell the two apart.
    """
    (few, short), (many, long) = sorted(sweeps[:2])
    if many < 1.5 * few or long <= short:
        return 0.0, long / many
    per_row = (long - short) / (many - few)
    return max(short - per_row * few, 0.0), per_row


def decomposition_seconds(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> float:
    """Return the expected time of one dense SVD, from a smaller one measured once per process."""
    size = min(_PROBED_SIZE, *shape)
    larger, smaller = max(shape), min(shape)
    return _measured_decomposition(size, dtype, device) * (smaller / size) ** 2 * (larger / size)


@lru_cache
def _measured_decomposition(size: int, dtype: torch.dtype, device: torch.device) -> float:
    matrix = torch.randn(size, size, dtype=dtype, device=device, generator=torch.Generator(device).manual_seed(0))
    times = []
    for _ in range(3):
        began = time.perf_counter()
        float(torch.linalg.svd(matrix).S[0])
        times.append(time.perf_counter() - began)
    return min(times)


def _tiny(batch: CountingBatch) -> bool:
    return max(max(shape) for shape in batch.shapes) <= _PROBED_SIZE


def _lanczos_road(options: Options, why: str, measured: dict[str, float]) -> Road:
    return Road("lanczos", why, {"method": "lanczos", "block": options.width, **measured})
