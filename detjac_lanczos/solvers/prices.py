"""What passes, row-sweeps, the SVDs of dense and the work of Lanczos take, in seconds: found by timing some of each."""

import math
import time
from collections.abc import Sequence
from functools import lru_cache

import torch

from detjac_lanczos.solvers.counting import CountingBatch
from detjac_lanczos.solvers.decisions import PRICES
from detjac_lanczos.solvers.forecast import Forecast
from detjac_lanczos.solvers.materialisation import Materialisation
from detjac_lanczos.solvers.width import alike, price

_PROBED_SIZE = 384
_WORTH_TIMING = 5e-3
"""Seconds of a pass from which on passes, and not their rows alone, are worth timing."""
MANY_PASSES = 10
"""Of a search, from which on one more to learn what makes them slow is no more than a tenth."""
_WIDE_ENOUGH = 32.0
"""Row-sweeps that a pass needs, to be told from one of a single row; they cost about as much as the pass does."""


def price_of_work(batch: CountingBatch) -> dict[str, float]:
    """Return what the SVDs of dense take, and a unit of what Lanczos does on the host in float64, in seconds."""
    svds = sum(decomposition_seconds(shape, batch.dtype, batch.device) for shape in batch.shapes)
    unit = decomposition_seconds((_PROBED_SIZE, _PROBED_SIZE), torch.float64, torch.device("cpu")) / _PROBED_SIZE**3
    return batch.settle({"svd_seconds": svds, "seconds_per_work": unit})


def rates_of_dense(dense: Materialisation, expected: Forecast, measured: dict[str, float]) -> tuple[float, float]:
    """Return the rates by the first pass; a second one, of one row, is made before Lanczos with its many is preferred.

    One pass does not show what passes cost apart from their rows: it is right to stay where they cost nothing.
    """
    rows, seconds = dense.batch.sweeps[0]
    lanczos_seconds, dense_seconds = expected.seconds(0.0, seconds / rows, *(measured[name] for name in PRICES[2:]))
    if lanczos_seconds > dense_seconds or not dense.passes:
        return 0.0, seconds / rows
    dense.send_again(1)
    return price(dense.batch.sweeps[1], dense.batch.sweeps[0])


def rates_of_search(dense: Materialisation, *, one_more: bool) -> tuple[float, float]:
    """Return the rates by all passes so far, the first one left out where there are others.

    Where their rows are too alike to tell, there may be one more, of other rows. Passes that take next to no time cost
    what their rows do.
    """
    batch = dense.batch
    few, many = _extremes(_later(batch.sweeps))
    if many[1] < _WORTH_TIMING:
        return price(many, many)
    if one_more and alike(few, many):
        one = dense.cost_of_one
        narrow = many[0] >= _WIDE_ENOUGH and not alike((one, 0.0), many)
        dense.send_again(1 if narrow else math.ceil(max(_WIDE_ENOUGH, 2.0 * many[0]) / one))
    return sweep_rates(_later(batch.sweeps))


def _later(sweeps: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    return sweeps[1:] if len(sweeps) > 2 else sweeps


def sweep_rates(sweeps: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return seconds a pass and seconds a row from (rows, seconds): the fastest of fewest and of most rows tell.

    A pass that took longer for fewer rows warmed the machine up: what it took says nothing of a pass.
    """
    few, many = _extremes(sweeps)
    return price(many if few[1] >= many[1] else few, many)


def _extremes(sweeps: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], tuple[float, float]]:
    return min(sweeps), max(sweeps, key=lambda sweep: (sweep[0], -sweep[1]))


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
