"""Lanczos or dense: counted row-sweeps decide where they can, the times of the first passes where they cannot."""

import math

from detjac_lanczos.solvers.counting import CountingBatch
from detjac_lanczos.solvers.decisions import PRICES
from detjac_lanczos.solvers.dense import decompose, solve_dense
from detjac_lanczos.solvers.finish import Method
from detjac_lanczos.solvers.forecast import Forecast, forecast, search_work, work_seconds
from detjac_lanczos.solvers.lanczos import conclude
from detjac_lanczos.solvers.lockstep import Lockstep
from detjac_lanczos.solvers.materialisation import Materialisation
from detjac_lanczos.solvers.options import Options
from detjac_lanczos.solvers.prices import MANY_PASSES, price_of_work, rates_of_dense, rates_of_search
from detjac_lanczos.solvers.result import SVDResult
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
    expected = _forecast(batch, options, options.width, dense)
    bounded = options.max_products is not None
    stays = bounded or options.start is not None
    fewer = expected.ratio < 1.0 or bounded
    clear = bounded or is_tiny(batch) or not (expected.may_be_lanczos and expected.may_be_dense)
    lockstep, why, measured = None, expected.sentence, {}
    doubt = _BEYOND_THE_FIT if clear else _WORTH_THE_DOUBT
    if fewer and not is_tiny(batch) and not (stays and clear):
        lockstep = _begun(batch, options)
        clear = not lockstep.active or (clear and not _passes_may_decide(dense, expected))
    if not (fewer and clear) and (lacking := _lacks_room(batch)):
        fewer, clear, stays, why = True, True, True, f"{why}; {lacking}"
    if not clear:
        measured = price_of_work(batch)
        if lockstep is None:
            _require_room(batch)
            dense.advance()
            expected = _forecast(batch, options, options.width, dense)
            rates = rates_of_dense(dense, expected, measured)
        else:
            rates = rates_of_search(dense, one_more=expected.lanczos_passes >= MANY_PASSES)
            expected = _forecast(batch, options, lockstep.width, dense)
        measured |= batch.settle(dict(zip(PRICES[:2], rates, strict=True)))
        per_pass, per_row, svds, per_work = (measured[name] for name in PRICES)
        lanczos_seconds, dense_seconds = expected.seconds(per_pass, per_row, svds, per_work)
        fewer = lanczos_seconds <= doubt * dense_seconds
        why += (
            f"; a sweep takes {per_pass * 1e3:.1f} ms + {per_row * 1e3:.3f} ms a row, the work of the search "
            f"{expected.work_seconds(per_work):.2f} s and the SVDs {svds:.2f} s: "
            f"{lanczos_seconds:.2f} s expected against {dense_seconds:.2f} s"
        )
    if fewer:
        del dense
        patience = math.inf if stays else _MORE_THAN_EXPECTED
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

    That is counted in row-sweeps; and in time, by the prices of both, once its own work, or its products after ten
    passes and more than were expected, have come to those of dense. Lanczos goes on where memory does not hold the
    matrices.
    """
    batch, options, dense = lockstep.batch, lockstep.options, Materialisation(lockstep.batch)
    expected = _forecast(batch, options, options.width, dense)
    known = tuple(measured[name] for name in PRICES[:2] if name in measured)
    sure = bool(known)
    many = max(MANY_PASSES, patience * expected.lanczos_passes) if options.counted else MANY_PASSES
    while lockstep.active:
        swept, work = sum(batch.row_sweeps), _work_so_far(lockstep)
        left = ""
        if swept >= patience * expected.dense_rows:
            left = f"left after {swept:,.0f} row-sweeps of Lanczos for the {expected.dense_rows:,.0f} of dense"
        elif len(batch.sweeps) > 1 and patience < math.inf:
            overdue = len(batch.sweeps) >= many
            rates = known or rates_of_search(dense, one_more=overdue)
            _, written = expected.product_seconds(*rates)
            products = len(batch.sweeps) * rates[0] + swept * rates[1]
            if (overdue and products >= patience * written) or work >= patience * expected.dense_work:
                measured |= dict(zip(PRICES[:2], rates, strict=True))
                if "svd_seconds" not in measured:
                    measured |= price_of_work(batch)
                spent = products + work_seconds(work, sum(batch.passes), measured["seconds_per_work"])
                takes = written + measured["svd_seconds"]
                if spent >= patience * takes and not sure:
                    dense.send_again(1)  # A hiccup of the machine looks like a costly pass.
                    sure = True
                    continue
                if spent >= patience * takes:
                    left = f"left as the search and its work had come to {spent:.2f} s for the {takes:.2f} s of dense"
        if left and not (lacking := _lacks_room(batch)):
            _require_room(batch)
            del lockstep
            return decompose(dense, options, Method("dense", f"{why}; {left}", {"method": "dense", **measured}))
        if left:
            patience, why = math.inf, f"{why}; {lacking}"
        lockstep.advance()
    return conclude(lockstep, Method("lanczos", why, {"method": "lanczos", "block": options.width, **measured}))


def _work_so_far(lockstep: Lockstep) -> float:
    batch = lockstep.batch
    return sum(
        search_work(batch.forward[index] + batch.transposed[index], passes, search.goal.wanted, search.shape)
        for index, (search, passes) in enumerate(zip(lockstep.searches, batch.passes, strict=True))
    )


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


def _forecast(batch: CountingBatch, options: Options, width: int, dense: Materialisation) -> Forecast:
    return forecast(
        batch.shapes,
        batch.costs,
        batch.shared_cost,
        k=options.k,
        tol=options.tol,
        width=width,
        dense_passes=dense.passes,
    )


def is_tiny(batch: CountingBatch) -> bool:
    """Whether all matrices are so small that writing them out costs nothing worth measuring."""
    return max(max(shape) for shape in batch.shapes) <= TINY
