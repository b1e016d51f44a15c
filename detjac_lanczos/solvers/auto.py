"""Lanczos or dense: counted row-sweeps decide where they can, the times of the first passes where they cannot."""

import math

from detjac_lanczos.solvers.counting import CountingBatch
from detjac_lanczos.solvers.decisions import PRICES
from detjac_lanczos.solvers.dense import decompose, solve_dense
from detjac_lanczos.solvers.finish import Method
from detjac_lanczos.solvers.forecast import Forecast
from detjac_lanczos.solvers.lanczos import conclude
from detjac_lanczos.solvers.lockstep import Lockstep
from detjac_lanczos.solvers.materialisation import Materialisation
from detjac_lanczos.solvers.options import Options
from detjac_lanczos.solvers.prices import MANY_PASSES, price_of_work, rates_of_dense, rates_of_search
from detjac_lanczos.solvers.result import SVDResult
from detjac_lanczos.solvers.rival import Rival, expectation
from detjac_lanczos.solvers.room import require_room, shortage

TINY = 256
"""Matrices are tiny up to this many rows and columns."""
_MORE_THAN_EXPECTED = 1.5
"""Of dense's cost, what a search may take that was expected to take less: it may be near its end."""
_WORTH_THE_DOUBT = 0.9
"""Of dense's time, what Lanczos may be expected to take: its rows come from a fit, those of dense are counted."""
_BEYOND_THE_FIT = 1.25
"""The same where far fewer rows speak for Lanczos: its time must be expected to be longer by more than the fit errs."""


def solve_auto(batch: CountingBatch, options: Options) -> list[SVDResult]:
    """Choose the method by counted row-sweeps; where these are close, begin the one with fewer and time its passes.

    So are passes of a search that rows alone would have decided for, where its many may cost more than dense's few.
    A method that is begun and kept has lost a pass at most; one that is left has lost two or three. Where memory does
    not hold the matrices, nothing is timed: it is Lanczos. A search that takes more than was expected is left as well.
    """
    dense = Materialisation(batch)
    expected = expectation(dense, options, options.width)
    why, tiny = expected.sentence, is_tiny(batch)
    if options.max_products is not None:
        return _search(Lockstep(batch, options), math.inf, why, {})
    patience = math.inf if options.start is not None else _MORE_THAN_EXPECTED
    fewer = expected.ratio < 1.0
    clear = tiny or not (expected.may_be_lanczos and expected.may_be_dense)
    doubt = _BEYOND_THE_FIT if clear else _WORTH_THE_DOUBT
    lockstep: Lockstep | None = None
    measured: dict[str, float] = {}
    if fewer and not tiny and not (patience == math.inf and clear):
        lockstep = _begun(batch, options)
        clear = not lockstep.active or (clear and not _passes_may_decide(dense, expected))
    if not (fewer and clear) and (lacking := _lacks_room(batch)):
        return _search(lockstep or Lockstep(batch, options), math.inf, f"{why}; {lacking}", {})
    if not clear:
        expected, measured = _timed(dense, expected, options, lockstep)
        fewer, told = _by_time(expected, measured, doubt)
        why += f"; {told}"
    if fewer:
        del dense
        return _search(lockstep or Lockstep(batch, options), patience, why, measured)
    del lockstep
    if not dense.matrices:
        _require_room(batch)
    return decompose(dense, options, Method("dense", why, {"method": "dense", **measured}))


def _begun(batch: CountingBatch, options: Options) -> Lockstep:
    """Return a search that has made a pass each way."""
    lockstep = Lockstep(batch, options)
    lockstep.advance()
    lockstep.advance()
    return lockstep


def _timed(
    dense: Materialisation, expected: Forecast, options: Options, lockstep: Lockstep | None
) -> tuple[Forecast, dict[str, float]]:
    """Return what is still expected and the prices of it, by passes of the search, or of dense where none was begun."""
    batch = dense.batch
    measured = price_of_work(batch)
    if lockstep is None:
        _require_room(batch)
        dense.advance()
        expected = expectation(dense, options, options.width)
        rates = rates_of_dense(dense, expected, measured)
    else:
        rates = rates_of_search(dense, one_more=expected.lanczos_passes >= MANY_PASSES)
        expected = expectation(dense, options, lockstep.width)
    return expected, measured | batch.settle(dict(zip(PRICES[:2], rates, strict=True)))


def _by_time(expected: Forecast, measured: dict[str, float], doubt: float) -> tuple[bool, str]:
    """Return whether Lanczos is expected to take less than ``doubt`` times the time of dense, and what says so."""
    per_pass, per_row, svds, per_work = (measured[name] for name in PRICES)
    lanczos, dense = expected.seconds(per_pass, per_row, svds, per_work)
    return lanczos <= doubt * dense, (
        f"a sweep takes {per_pass * 1e3:.1f} ms + {per_row * 1e3:.3f} ms a row, the work of the search "
        f"{expected.work_seconds(per_work):.2f} s and the SVDs {svds:.2f} s: "
        f"{lanczos:.2f} s expected against {dense:.2f} s"
    )


def _passes_may_decide(dense: Materialisation, expected: Forecast) -> bool:
    """Whether the products of a search, of fewer rows, take longer than those of dense, by what passes cost alone."""

    def lanczos_is_slower() -> bool:
        rates = rates_of_search(dense, one_more=expected.lanczos_passes >= MANY_PASSES)
        lanczos, written = expected.product_seconds(*rates)
        return lanczos > _BEYOND_THE_FIT * written

    if not lanczos_is_slower():
        return False
    dense.send_again(1)  # A hiccup of the machine looks like a costly pass.
    return lanczos_is_slower()


def solve_uncounted(batch: CountingBatch, options: Options) -> list[SVDResult]:
    """Search by Lanczos for triplets whose number is not known, and change over to dense once that would be done.

    Both together take about twice the row-sweeps of the cheaper one, at most.
    """
    if is_tiny(batch):
        return solve_dense(batch, options, Method("dense", "tiny matrices are written out", {"method": "dense"}))
    return _search(Lockstep(batch, options), 1.0, "the number of triplets is not known beforehand", {})


def _search(lockstep: Lockstep, patience: float, why: str, measured: dict[str, float]) -> list[SVDResult]:
    """Search by Lanczos, and change over to dense once the search has taken ``patience`` times what that takes.

    Lanczos goes on where memory does not hold the matrices.
    """
    batch, options = lockstep.batch, lockstep.options
    rival = Rival(batch, options, patience, measured)
    while lockstep.active:
        if left := rival.overtakes(lockstep):
            if not (lacking := _lacks_room(batch)):
                _require_room(batch)
                del lockstep
                method = Method("dense", f"{why}; {left}", {"method": "dense", **rival.measured})
                return decompose(rival.dense, options, method)
            rival.patience, why = math.inf, f"{why}; {lacking}"
        lockstep.advance()
    return conclude(lockstep, Method("lanczos", why, {"method": "lanczos", "block": options.width, **rival.measured}))


def _lacks_room(batch: CountingBatch) -> str:
    """Return what memory lacks to hold the matrices, empty where it lacks nothing; what was found at first holds."""
    lacking = shortage(batch.shapes, batch.dtype, batch.device, decomposed=True)
    if batch.settle({"room_for_dense": float(not lacking)})["room_for_dense"]:
        return ""
    return lacking or "there was no room for the matrices"


def _require_room(batch: CountingBatch) -> None:
    """Raise :class:`InputError` where memory does not hold what it held when an earlier run chose dense."""
    journaled = batch.journal is not None
    require_room(batch.shapes, batch.dtype, batch.device, decomposed=True, journaled=journaled)


def is_tiny(batch: CountingBatch) -> bool:
    """Whether all matrices are so small that writing them out costs nothing worth measuring."""
    return max(max(shape) for shape in batch.shapes) <= TINY
