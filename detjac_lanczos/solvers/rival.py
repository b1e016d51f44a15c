"""Dense as the rival of a search that goes on: when the search has taken what writing the matrices out would."""

import math

from detjac_lanczos.solvers.counting import CountingBatch
from detjac_lanczos.solvers.decisions import PRICES
from detjac_lanczos.solvers.forecast import Forecast, forecast, search_work, work_seconds
from detjac_lanczos.solvers.lockstep import Lockstep
from detjac_lanczos.solvers.materialisation import Materialisation
from detjac_lanczos.solvers.options import Options
from detjac_lanczos.solvers.prices import MANY_PASSES, price_of_work, rates_of_search


class Rival:
    """What dense takes, beside a search that is left once it has taken ``patience`` times that.

    Row-sweeps are compared from the start. Times are, by the prices of both, once the search's own work has come to
    that of dense, or its products have after ten passes and more than were expected.

    Attributes
    ----------
    patience : float
        Infinite where the search is never left.
    measured : dict
        The prices that were asked for so far, by the names in ``SVDResult.choices``.
    dense : Materialisation
    """

    def __init__(self, batch: CountingBatch, options: Options, patience: float, measured: dict[str, float]) -> None:
        self.patience = patience
        self.measured = measured
        self.dense = Materialisation(batch)
        self._expected = expectation(self.dense, options, options.width)
        self._known = tuple(measured[name] for name in PRICES[:2] if name in measured)
        self._sure = bool(self._known)
        self._many = max(MANY_PASSES, patience * self._expected.lanczos_passes if options.counted else 0.0)

    def overtakes(self, lockstep: Lockstep) -> str:
        """Return why the search is to be left now, empty where it is to go on."""
        batch = lockstep.batch
        swept, allowed = sum(batch.row_sweeps), self._expected.dense_rows
        if swept >= self.patience * allowed:
            return f"left after {swept:,.0f} row-sweeps of Lanczos for the {allowed:,.0f} of dense"
        if len(batch.sweeps) < 2 or self.patience == math.inf:
            return ""
        spent, takes = self._seconds(batch, swept, _work_so_far(lockstep))
        if spent < self.patience * takes:
            return ""
        if self._sure:
            return f"left as the search and its work had come to {spent:.2f} s for the {takes:.2f} s of dense"
        self.dense.send_again(1)  # A hiccup of the machine looks like a costly pass.
        self._sure = True
        return self.overtakes(lockstep)

    def _seconds(self, batch: CountingBatch, swept: float, work: float) -> tuple[float, float]:
        """Return what the search has taken, nothing where that cannot be enough, and what dense takes, in seconds."""
        overdue = len(batch.sweeps) >= self._many
        rates = self._known or rates_of_search(self.dense, one_more=overdue)
        products = len(batch.sweeps) * rates[0] + swept * rates[1]
        _, written = self._expected.product_seconds(*rates)
        if not (overdue and products >= self.patience * written) and work < self.patience * self._expected.dense_work:
            return 0.0, math.inf
        self.measured |= dict(zip(PRICES[:2], rates, strict=True))
        if "svd_seconds" not in self.measured:
            self.measured |= price_of_work(batch)
        own = work_seconds(work, sum(batch.passes), self.measured["seconds_per_work"])
        return products + own, written + self.measured["svd_seconds"]


def _work_so_far(lockstep: Lockstep) -> float:
    """Return what a search has done besides its products, in the unit of :class:`Forecast`."""
    batch = lockstep.batch
    return sum(
        search_work(batch.forward[index] + batch.transposed[index], passes, search.goal.wanted, search.shape)
        for index, (search, passes) in enumerate(zip(lockstep.searches, batch.passes, strict=True))
    )


def expectation(dense: Materialisation, options: Options, width: int) -> Forecast:
    """Return what a search with blocks of ``width`` and the rest of ``dense`` are expected to take."""
    batch = dense.batch
    return forecast(
        batch.shapes,
        batch.costs,
        batch.shared_cost,
        k=options.k,
        tol=options.tol,
        width=width,
        dense_passes=dense.passes,
    )
