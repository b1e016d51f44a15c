"""The search for one operator's leading triplets: what to multiply next, and when to stop."""

import numpy as np
import torch
from torch import Tensor

from detjac_lanczos.solvers.basis import complete_block, dominant_rows, singular_values
from detjac_lanczos.solvers.copies import CopyProbe
from detjac_lanczos.solvers.directions import open_directions
from detjac_lanczos.solvers.end import End
from detjac_lanczos.solvers.factorisation import Factorisation, RitzTriplets, adjoint_defect
from detjac_lanczos.solvers.goal import Goal
from detjac_lanczos.solvers.judgement import Judge
from detjac_lanczos.solvers.operator import Direction
from detjac_lanczos.solvers.options import Options
from detjac_lanczos.solvers.restart import SPARE_VECTORS, vectors_to_keep
from detjac_lanczos.solvers.result import Status
from detjac_lanczos.solvers.rounding import epsilon, rounding_of, working_dtype
from detjac_lanczos.solvers.start import given_block, random_block
from detjac_lanczos.solvers.streams import Stream
from detjac_lanczos.solvers.widening import Widening
from detjac_lanczos.solvers.width import expected_room


class Search:
    """Block Golub-Kahan on one operator, one pass at a time, under a driver that makes the products.

    The driver sends ``block`` through A or Aᵀ, hands the product to :meth:`absorb` and asks :meth:`prepare` for the
    next block. Once k Ritz triplets exist, a block holds only directions in which the residual of an unconverged
    triplet is above ``tol``: blocks shrink as triplets converge, and what is left out stays in the measured residuals.
    Room left in a block goes to the largest residuals of the next Ritz triplets, which also speeds up the open ones.
    Where a cluster of values is as large as blocks are wide they widen (``widening``), to see further copies.

    Attributes
    ----------
    block : Tensor or None
        Orthonormal rows to multiply next; None sits the next pass out.
    status : Status or None
        None while the search goes on.
    state : Factorisation
    triplets : RitzTriplets or None
        The latest k Ritz triplets, of ``judge.scale`` times the operator.
    width : int
        Of the blocks to come.
    goal : Goal
        How many triplets, and what residuals they may have.
    judge : Judge
        When residuals are small enough, in units that it keeps.
    products : int
        Columns both ways so far, those of probes included: what ``max_products`` bounds.
    probed : int
        Columns of these that went into probes for completeness.
    widening : Widening
    defect : float
        What contradicts in the products, relative to the longest, where the search ended by that.
    unseen : float
        What the operator's products of the triplets may differ by from those stored, where a basis spans its space and
        the budget leaves none to measure them: a whole space takes the rounding of its own products for the operator.
    """

    def __init__(self, shape: tuple[int, int], operator_dtype: torch.dtype, device: torch.device, options: Options):
        self.options = options
        self.shape = shape
        self.dtype = working_dtype(operator_dtype)
        self.state = Factorisation(
            shape,
            self.dtype,
            device,
            room=expected_room(options.k, options.tol, options.width, shape),
            most=options.capacity,
        )
        self.generator = torch.Generator().manual_seed(options.seed)
        self.block: Tensor | None = None
        self.status: Status | None = None
        self.triplets: RitzTriplets | None = None
        self._ritz: RitzTriplets | None = None
        self.products = 0
        self.probed = 0
        self.goal = Goal(shape, options, self.state.U.rows)
        self.judge = Judge(shape, operator_dtype, self.goal, options.tol)
        self.width = options.width
        self._begun_with = 0
        self._fresh = True
        self._end = End()
        self._full = False
        self.unseen = 0.0
        self.defect = 0.0
        self._idle = 0
        self.widening = Widening(Stream.COPIES.generator(options.seed))
        self._copy_probe = CopyProbe()

    @property
    def k(self) -> int:
        """Triplets to return."""
        assert self.triplets is not None
        return self.goal.count(self.triplets.values)

    @property
    def relative(self) -> np.ndarray:
        """Relative residuals of the triplets, see :meth:`Judge.relative`; empty before there are k."""
        return np.empty(0) if self.triplets is None else self.judge.relative(self.triplets)

    @property
    def left(self) -> int:
        """Products that the budget leaves; more than any search takes where there is none."""
        return self.options.left(self.products)

    def begin(self, start: Tensor | None) -> None:
        """Set the first block, which goes in the first direction of the options.

        Parameters
        ----------
        start : Tensor, shape (d_in, w), or None
            Right vectors to begin with, beside which one random vector goes; without them, the block is random.
        """
        most = max(self._affordable(self.options.first_direction), self.left // 2)
        if start is None:
            self.block = random_block(self.state.U.rows, min(self.width, most), self.generator)
        else:
            self.block, self._begun_with = given_block(start, self.state.V.rows, self.width, most, self.generator)
        given = max(self._begun_with - 1, 0)
        self.widening.draw(self.block.shape[0] - given, given)

    def absorb_sketch(self, products: Tensor) -> None:
        """Take the products of the random cotangents that the goal has drawn, before the first block is sent."""
        assert self.goal.sketch is not None
        self.judge.passes += 1
        self.products += products.shape[0]
        self.judge.choose_scale(products)
        self.goal.sketch.absorb(products * self.judge.scale)

    def absorb(self, direction: Direction, product: Tensor) -> None:
        """Take the product ``(b, d_out)`` or ``(b, d_in)`` of ``block``; sets ``status`` where the search has ended."""
        assert self.block is not None
        self.judge.passes += 1
        self.products += self.block.shape[0]
        product = self.judge.scaled(product)
        if self.triplets is None:
            self.judge.see(float(torch.linalg.vector_norm(product, dim=1).max()))
        first_pair = self.state.steps == 0
        self.state.absorb(direction, self.block, product)
        opposite = self.state.U.rows if direction is Direction.FORWARD else self.state.V.rows
        sent = 0 if self.widening.strand is None else self.widening.strand.sent
        vanished = self.widening.absorb(product, opposite, self.judge.negligible)
        if self._end.row is not None:
            self._end.look(product, opposite, self.judge.floor)
        elif vanished or (self._fresh and float(torch.linalg.vector_norm(product)) <= self.judge.floor):
            random = product[len(product) - sent :] if vanished else product
            self._end.suspect(random, opposite, affordable=self._affordable(direction.other) > 0)
        self._look()
        if first_pair or self.status is not None:
            self._compare()

    def prepare(self, direction: Direction) -> None:
        """Choose the rows to send in ``direction`` next; none where this side has no part in an open residual."""
        restarted = self.options.capacity is not None and self._make_room(self.options.capacity)
        basis = self.state.V.rows if direction is Direction.FORWARD else self.state.U.rows
        count, affordable = basis.shape[0], self._affordable(direction)
        most = min(basis.shape[1] - count, affordable)
        if self._copy_probe.passes_left:
            latest = self.state.outside(direction, self.width)
            block, width = self._growing(latest[:0] if self._copy_probe.starts else latest, self.width, count)
        elif self.triplets is None:
            block, width = self._growing(self.state.outside(direction), max(self.width, self._begun_with), count)
        else:
            block, width = self._closing(direction, basis, most)
        if self._end.row is not None:
            block = self._end.above(block)
            width = max(width, block.shape[0]) if self.triplets is None else block.shape[0]
        width = min(width, most)
        self.widening.fill(max(width - block.shape[0], 0))
        self.block = complete_block(block[:width], basis, width, self.generator) if width else None
        self._idle = 0 if width else self._idle + 1
        if affordable == 0:
            self.status = Status.BUDGET
            if self.triplets is None and self.state.steps:
                self.triplets = self.state.ritz(self.state.steps)
        elif self._idle == 2:
            solved = self.triplets is not None and self.judge.solved(self.triplets, exact=True)
            self.status = self._exhausted() if solved else Status.NOISE_FLOOR
        if restarted or self.status is not None:
            self._compare()

    def _growing(self, outside: Tensor, width: int, count: int) -> tuple[Tensor, int]:
        """Return orthonormal directions of products outside the basis of ``count`` rows, and how wide to send them.

        Where there are none, fresh columns are sent: as many as the basis lacks to hold what is wanted, at least.
        """
        block = dominant_rows(outside, width, self.judge.negligible)
        self._fresh = not block.shape[0]
        return block, max(width, self.goal.wanted - count) if self._fresh else width

    def _closing(self, direction: Direction, basis: Tensor, most: int) -> tuple[Tensor, int]:
        """Return orthonormal directions of the residuals of open triplets, and how wide to send them.

        The strand of a cluster goes beside them. Where no triplet is open on any side, fresh columns are sent.
        """
        assert self.triplets is not None and self._ritz is not None
        residuals = self._ritz.left_residuals if direction is Direction.FORWARD else self._ritz.right_residuals
        wanted, allowed = len(self.triplets.values), self.judge.closed(self._ritz.values)
        block, still_open = open_directions(self._ritz, residuals, allowed, wanted, self.width)
        if block.shape[0]:
            self.widening.follow(block.shape[0] + wanted - still_open)
        block = self.widening.beside(block, basis, most)
        self._fresh = not (still_open or block.shape[0])
        return block, self.width if self._fresh else block.shape[0]

    def _compare(self) -> None:
        """End the search where its products contradict each other: a wrong transpose, or an operator that changes.

        Those of the first pair show it of random vectors; those of all vectors once a search ends, or restarts, also
        what was true only of the first passes or only in some directions.
        """
        self._end_if_contradicted(self.state.adjoint_defect())

    def hold_against(self, direction: Direction, rows: Tensor, products: Tensor) -> None:
        """End the search where other rows, of a probe or the triplets, contradict the products that it stored.

        ⟨u, A p⟩ = ⟨Aᵀ u, p⟩ shows an operator that changed since; without it a probe would bound another operator.
        """
        model = self.state.U.rows
        self._end_if_contradicted(self.state.defect_of(direction, rows.to(model.dtype), products.to(model.dtype)))

    def _end_if_contradicted(self, defect: float) -> None:
        if self.judge.contradicts(defect):
            self.defect = defect
            self.status = Status.NOT_ADJOINT

    def _make_room(self, capacity: int) -> bool:
        """Restart where the next blocks, those of a probe included, would not fit; never within a probe."""
        if self.triplets is None or self._copy_probe.passes_left:
            return False
        fullest = max(self.state.U.count, self.state.V.count)
        keep = vectors_to_keep(capacity, fullest, self.goal.wanted, self.width)
        if keep is None:
            return False
        self.state.restart(keep, 2 * self.width)
        return True

    @property
    def unmeasured(self) -> RitzTriplets | None:
        """Triplets that the search ended with as those of a whole space, before the operator has multiplied them.

        Residuals of stored products say nothing then: those of one side follow from the other, rounding included. The
        guards of a claim of completeness are among the triplets, where half of the budget is left after them.
        """
        if not self._full or self.status is None or not self.status.ended_well:
            return None
        guards = 0 if self.options.delta is None else SPARE_VECTORS
        return self.state.ritz(min(self.goal.wanted + guards, max(self.goal.wanted, self.left // 4)))

    def measure(self, triplets: RitzTriplets, pushed: Tensor, pulled: Tensor) -> None:
        """Take the operator's products with :attr:`unmeasured` triplets, in place of all that are stored.

        Parameters
        ----------
        triplets : RitzTriplets
        pushed, pulled : Tensor, shape (r, d_out) and (r, d_in)
            A v and Aᵀ u.
        """
        self._full = False
        self.judge.passes += 2
        self.products += 2 * len(triplets.values)
        pushed, pulled = pushed * self.judge.scale, pulled * self.judge.scale
        self.state.retract()
        self.hold_against(Direction.FORWARD, triplets.right, pushed)
        self.hold_against(Direction.TRANSPOSED, triplets.left, pulled)
        self._end_if_contradicted(adjoint_defect(triplets.left, pulled, triplets.right, pushed))
        if self.status is Status.NOT_ADJOINT:
            return
        self.state.replace(triplets, pushed, pulled)
        self.goal.sketch = None
        self.triplets = self._ritz = self.state.ritz(self.goal.wanted)
        if self.judge.solved(self.triplets, exact=False):
            self.status = Status.CONVERGED if self.status is Status.NOISE_FLOOR else self.status
        elif self.judge.solved(self.triplets, exact=True):
            self.status = Status.BREAKDOWN_EXACT  # one is a zero, and those beyond are no larger

    def restate_energy(self) -> None:
        """State the share of ‖A‖_F², which rests on σ_1, anew where the search ended before that was found."""
        if self.triplets is not None and self.relative[0] > self.options.tol:
            self.goal.restate_energy(self.state, self.triplets.values, self.judge.eps)

    def count_probed(self) -> None:
        """Count a product of a probe: a pass of one column that is none of the search."""
        self.judge.passes += 1
        self.products += 1
        self.probed += 1

    def reopen(self) -> None:
        """Judge again, after the rows of one more random vector were taken."""
        self.status = None
        self.widening.draw(1)
        self.widening.strand = None
        self._copy_probe.passes_left = 0
        self._end = End()
        self._idle = 0
        self.judge.patience.reset()
        self._look()

    def forgo(self) -> None:
        """Do without the further triplet where the search for it has ended short."""
        if self.goal.further and self.triplets is not None and self.status in (Status.BUDGET, Status.NOISE_FLOOR):
            self.triplets = self.triplets.head(self.k)
            self.goal.forgo(len(self.triplets.values))
            if self.judge.solved(self.triplets, exact=False):
                self.status = Status.CONVERGED

    def _look(self) -> None:
        """Set how many triplets are wanted by what is known, and judge them once the bases can hold them."""
        most = self.goal.wanted if self.options.counted else min(self.shape)
        # With products of both sides, which may contradict each other, and where what follows can be measured.
        whole = self.state.whole and self.state.steps > 0
        self._full = whole and 2 * most <= self.left
        self.unseen = self.judge.negligible if whole and not self._full else 0.0
        if self._full:
            self.state.deduce(rounding_of(epsilon(self.dtype), self.judge.largest), self.generator)
            self.widening.strand, self._end.row, self._copy_probe.passes_left = None, None, 0
        self.goal.reconsider(self.state, self.judge.largest, self.judge.eps)
        if self.state.steps >= self.goal.wanted:
            self.triplets = self._ritz = None  # the new ones take their place
            self._ritz = self.state.ritz(self.goal.wanted + self.width // 2)
            self.triplets = self._ritz.head(self.goal.wanted)
            self.judge.see(float(self.triplets.values[0]))
            self.status = self._verdict(self.triplets)
        else:
            self.triplets = self.widening.strand = None

    def _verdict(self, triplets: RitzTriplets) -> Status | None:
        """Return how the search ends, by fresh triplets; None where it goes on."""
        full = self._full
        if self._end.row is not None:
            return None
        if self._end.reached and self.judge.solved(triplets, exact=True):
            return self._exhausted()
        widened = self._widens(triplets, full=full)
        if self.judge.solved(triplets, exact=False):
            return None if widened or self._copy_probe.goes_on(self.widening, full=full) else Status.CONVERGED
        if full and self.judge.solved(triplets, exact=True):
            return self._exhausted()
        self._copy_probe.found_something()
        return Status.NOISE_FLOOR if full or self.judge.stalled(triplets) else None

    def _exhausted(self) -> Status:
        """Return how a search ends whose triplets are solved where nothing further was found.

        Products that it has not followed, as no triplet wanted needed them, may show more: σ_j(A V) and σ_j(Uᵀ A) lie
        below σ_j(A).
        """
        shown = max(singular_values(store.rows)[self.k :].max(initial=0.0) for store in (self.state.AV, self.state.AtU))
        return Status.CONVERGED if shown > self.judge.floor else Status.BREAKDOWN_EXACT

    def _widens(self, triplets: RitzTriplets, *, full: bool) -> bool:
        """Whether a strand goes beside the next block; never during the probe of a single column."""
        tolerated = self.judge.tolerated(triplets.values)
        return not self._copy_probe.passes_left and self.widening.goes_on(
            triplets, tolerated, passes=self.judge.passes, full=full
        )

    def _affordable(self, direction: Direction) -> int:
        """Columns that the budget leaves for ``direction``, what the other side needs to reach k set aside."""
        other = self.state.U.count if direction is Direction.FORWARD else self.state.V.count
        reserved = max(self.goal.wanted - other, 0)
        return max(self.left - reserved, 0)
