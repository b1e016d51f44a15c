"""Many searches driven together: one pass serves every operator that still needs one."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from detjac_lanczos.solvers.contradiction import cause
from detjac_lanczos.solvers.counting import CountingBatch
from detjac_lanczos.solvers.operator import Direction
from detjac_lanczos.solvers.options import Options
from detjac_lanczos.solvers.result import Status
from detjac_lanczos.solvers.search import Search
from detjac_lanczos.solvers.width import MEASURED_FROM, fastest_width, price

_PASSES_BEFORE_A_PRICE = 2
"""One each way: the first may share its columns, and pays for what is made once; the second costs what others cost."""


class Lockstep:
    """Searches over a batch, advanced one pass at a time; converged operators leave, the others go on.

    Each operator's search depends on its own products, the block width and the seed alone, never on who shares the
    batch.

    Attributes
    ----------
    searches : list of Search
    ended : list of float
        When each search ended, in seconds from the start of the solve.
    width : int
        Of the blocks to come; the first one each way has ``options.width``.
    why : str
        What made the width another one, empty where nothing did.
    claimed : int
        Operators whose claim of completeness has been made or given up, where it is asked for.
    """

    def __init__(self, batch: CountingBatch, options: Options) -> None:
        self.batch = batch
        self.options = options
        self.searches = [Search(shape, batch.operator_dtype, batch.device, options) for shape in batch.shapes]
        starts: Sequence[Tensor | None] = options.start if options.start is not None else [None] * len(batch)
        self.ended = [0.0] * len(batch)
        self.claimed = 0
        self.width = options.width
        self.why = ""
        self.direction = options.first_direction
        self._made = 0
        if options.energy is not None:
            self._send_sketches()
        for search, start in zip(self.searches, starts, strict=True):
            search.begin(start)

    @property
    def active(self) -> list[int]:
        """Operators whose search goes on."""
        return [index for index, search in enumerate(self.searches) if search.status is None]

    def run(self) -> None:
        """Advance until every search has ended, and measure what follows from a whole space."""
        while self.active:
            self.advance()
        self._measure()

    def advance(self) -> None:
        """Make one pass in the current direction, and prepare the opposite one."""
        turn = [index for index in self.active if self.searches[index].block is not None]
        if turn:
            self._sweep(turn)
        self._made += 1
        if self._made == _PASSES_BEFORE_A_PRICE:
            self._settle_width()
        self.direction = self.direction.other
        for index in self.active:
            self.searches[index].prepare(self.direction)
            self.close(index)

    def _sweep(self, turn: list[int]) -> None:
        blocks = []
        for index in turn:
            block = self.searches[index].block
            assert block is not None
            blocks.append((index, block))
        if self._shares_the_first_pass():
            shared = self.batch.apply_shared(blocks[0][1])
            products = [shared[index] for index in turn]
        else:
            products = self.batch.apply(self.direction, blocks)
        for index, product in zip(turn, products, strict=True):
            search = self.searches[index]
            if index in self.batch.nonfinite:
                search.status = Status.NOT_FINITE
            else:
                search.absorb(self.direction, product)
            self.close(index)
        self.report()

    def _measure(self) -> None:
        """Send triplets that were not measured yet through A and Aᵀ, in passes that their operators share."""
        unmeasured = {
            index: triplets for index, search in enumerate(self.searches) if (triplets := search.unmeasured) is not None
        }
        counts = {index: len(triplets.values) for index, triplets in unmeasured.items()}
        for turn in self.batch.both_ways(counts, lambda index: (unmeasured[index].right, unmeasured[index].left)):
            for index, pushed, pulled in turn:
                search = self.searches[index]
                if index in self.batch.nonfinite:
                    search.status, search.triplets = Status.NOT_FINITE, None
                else:
                    search.measure(unmeasured[index], pushed, pulled)
                self.close(index)
            self.report()

    def _settle_width(self) -> None:
        """After one pass each way: set the width of the blocks to come, by what the last one cost if that decides."""
        if self.options.later is not None:
            self.width = self.options.later
        elif self.options.timed and self.active and self.batch.sweeps[-1][1] >= MEASURED_FROM:
            many = self.batch.sweeps[-1]
            few = self._time_one_column()
            if self.active and self._choose(few, many) > self.width:
                # A hiccup of the machine looks like a costly pass: the faster of two is believed.
                few = min(few, self._time_one_column(), key=lambda sweep: sweep[1])
                self.width = self._choose(few, many)
        for search in self.searches:
            search.width = self.width

    def _choose(self, few: tuple[float, float], many: tuple[float, float]) -> int:
        per_pass, per_row = price(few, many)
        per_column = per_row * sum(self.batch.costs[index] for index in self.active)
        width = fastest_width(per_pass, per_column, k=self.options.k, tol=self.options.tol, least=self.width)
        if width > self.width:
            self.why = f"; a pass takes {per_pass:.2g} s and a column of all {per_column:.2g} s: blocks of {width}"
        return width

    def _time_one_column(self) -> tuple[float, float]:
        """Send one column of the last pass again, and return the rows and seconds of that; it must come out alike."""
        turn = self.active
        rows = [(index, self.searches[index].state.V.rows[:1]) for index in turn]
        for index, product in zip(turn, self.batch.apply(Direction.FORWARD, rows), strict=True):
            search = self.searches[index]
            if index in self.batch.nonfinite:
                search.status = Status.NOT_FINITE
            elif not self.batch.alike(
                index, product * search.judge.scale, search.state.AV.rows[:1], search.judge.scale
            ):
                search.status = Status.NOT_DETERMINISTIC
            self.close(index)
        return self.batch.sweeps[-1]

    def close(self, index: int) -> None:
        """Where a search has ended, note when; where its products contradict each other, first find out why."""
        search = self.searches[index]
        if search.status is Status.NOT_ADJOINT:
            search.status = self._cause(index, search)
        if search.status is not None:
            self.ended[index] = self.batch.seconds

    def _cause(self, index: int, search: Search) -> Status:
        """Return why the products of a search contradict each other, by sending its first rows again."""
        state, width = search.state, self.options.width
        sides = ((Direction.FORWARD, state.V, state.AV), (Direction.TRANSPOSED, state.U, state.AtU))
        sent = [(direction, basis.rows[:width], stored.rows[:width]) for direction, basis, stored in sides]
        return cause(self.batch, index, sent, search.judge.scale, self.options, defect=search.defect)

    def report(self) -> None:
        """Hand how things stand to the callback's reporter."""
        reporter = self.batch.reporter
        if reporter.callback is None:
            return
        reporter.finished = len(self.searches) - len(self.active) if self.options.delta is None else self.claimed
        for index, search in enumerate(self.searches):
            values = np.empty(0) if search.triplets is None else search.triplets.values
            reporter.take(index, values, search.relative, search.judge.scale)

    def _send_sketches(self) -> None:
        """Send the random cotangents that measure ‖A‖_F, of all operators in one pass."""
        sketches = [search.goal.sketch for search in self.searches]
        rows = [(index, sketch.rows) for index, sketch in enumerate(sketches) if sketch is not None]
        shared = self._sharing_pays
        products = self.batch.apply_shared(rows[0][1]) if shared else self.batch.apply(Direction.TRANSPOSED, rows)
        for index, (search, product) in enumerate(zip(self.searches, products, strict=True)):
            if index in self.batch.nonfinite:
                search.status = Status.NOT_FINITE
            else:
                search.absorb_sketch(product)
            self.close(index)

    def _shares_the_first_pass(self) -> bool:
        """Random cotangents come from the seed alone, so operators with one output space start with the same ones."""
        return not self._made and self.direction is Direction.TRANSPOSED and self._sharing_pays

    @property
    def _sharing_pays(self) -> bool:
        return self.batch.one_output_space and self.batch.shared_cost < sum(self.batch.costs)
