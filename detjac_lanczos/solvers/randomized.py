"""The randomised method: subspace iteration with a wide block, measured like all others."""

import math

import numpy as np
import torch
from torch import Tensor

from detjac_lanczos.solvers.basis import orthonormal_factor, random_rows
from detjac_lanczos.solvers.contradiction import cause
from detjac_lanczos.solvers.counting import CountingBatch
from detjac_lanczos.solvers.factorisation import Factorisation, RitzTriplets, adjoint_defect
from detjac_lanczos.solvers.finish import Found, Method, finish
from detjac_lanczos.solvers.leave_one_out import LeaveOneOut
from detjac_lanczos.solvers.operator import Direction
from detjac_lanczos.solvers.options import Options
from detjac_lanczos.solvers.residuals import relative_residuals
from detjac_lanczos.solvers.result import Status, SVDResult
from detjac_lanczos.solvers.rounding import adjoint_bound, noise_floor, safe_scale

_OVERSAMPLING = 8
"""Columns of the block beyond k. Chosen: Halko, Martinsson and Tropp take 5 or 10."""

_DEFAULT_PASSES = 60
"""Passes where no budget is given. Chosen: they bring residuals to 1e-3 where σ_{k+9} is 0.89 σ_k or less."""


def solve_randomized(batch: CountingBatch, options: Options, method: Method) -> list[SVDResult]:
    """Find leading triplets by block power iteration of width k + 8 from random cotangents.

    Ritz triplets come from one basis on each side, with the products of both, so residuals on both sides are measured.
    Converges like (σ_{k+9} / σ_k)^passes: few wide passes where the spectrum falls fast, hopeless where it is flat.

    ``SVDResult.error`` estimates ‖A - U S Vᵀ‖_F from what was sent. With T the right basis and P = Tᵀ T its projector,
    ‖A - U S Vᵀ‖_F² = ‖A P - U S Vᵀ‖_F² + ‖A - A P‖_F², as V lies in the basis. The first term is known, the second is
    that of :class:`LeaveOneOut`, for one sample fewer.

    Source: Halko, Martinsson, Tropp 2011, algorithm 4.4; two-sided extraction as in the Lanczos method.
    """
    return [_solve_one(batch, index, options, method) for index in range(len(batch))]


def _solve_one(batch: CountingBatch, index: int, options: Options, method: Method) -> SVDResult:
    iteration = _Iteration(batch, index, options)
    status = iteration.round()
    while status is Status.BUDGET and iteration.affordable:
        status = iteration.round()
    found = None
    if iteration.triplets is not None and status not in (Status.NOT_ADJOINT, Status.NOT_DETERMINISTIC):
        found = Found.of(iteration.triplets, iteration.scale, float(iteration.triplets.values[0]))
    batch.reporter.finished += 1
    return finish(batch, index, found, status, method, options, seconds=batch.seconds, error=iteration.error)


class _Iteration:
    """Block power iteration on one operator, a round through Aᵀ and A at a time.

    Attributes
    ----------
    scale : float
        Power of two that products are multiplied with.
    triplets : RitzTriplets or None
        Those of the latest round, of ``scale`` times the operator.
    error : float or None
        The estimate of ‖A - U S Vᵀ‖_F with them.
    """

    def __init__(self, batch: CountingBatch, index: int, options: Options) -> None:
        self.batch, self.index, self.options = batch, index, options
        self.shape = batch.shapes[index]
        self.width = min(options.k + _OVERSAMPLING, *self.shape)
        if options.max_products is not None:
            self.width = min(self.width, options.max_products // 2)
        self.scale = 0.0
        self.triplets: RitzTriplets | None = None
        self.error: float | None = None
        self._estimate: LeaveOneOut | None = None
        self._before: Factorisation | None = None
        model = torch.empty(0, self.shape[0], dtype=batch.dtype, device=batch.device)
        drawn = random_rows(self.width, model, torch.Generator().manual_seed(options.seed))
        self._factor, self._cotangents = orthonormal_factor(drawn)

    @property
    def affordable(self) -> bool:
        """Whether another round fits."""
        spent = self.batch.forward[self.index] + self.batch.transposed[self.index]
        budget = self.options.max_products
        return spent + 2 * self.width <= (_DEFAULT_PASSES * self.width if budget is None else budget)

    def round(self) -> Status:
        """Send the block there and back; return how the iteration stands, BUDGET while it should go on."""
        pulled = self._product(Direction.TRANSPOSED, self._cotangents)
        if pulled is None:
            return Status.NOT_FINITE
        estimate = self._estimate = self._estimate or LeaveOneOut(self._factor, pulled)
        factor, tangents = orthonormal_factor(pulled)
        estimate.follow(factor)
        pushed = self._product(Direction.FORWARD, tangents)
        if pushed is None:
            return Status.NOT_FINITE
        state = Factorisation(self.shape, self.batch.dtype, self.batch.device)
        state.absorb(Direction.TRANSPOSED, self._cotangents, pulled)
        state.absorb(Direction.FORWARD, tangents, pushed)
        eps = self.batch.epsilon(self.index, state.longest / self.scale)
        defect = _defect(state, self._before)
        if defect > adjoint_bound(eps, max(self.shape)):
            return self._cause(self._before or state, defect)
        self._before = state
        self.triplets = state.ritz(self.options.k)
        self.error = self._error(self.triplets, tangents, pushed, estimate)
        factor, self._cotangents = orthonormal_factor(pushed)
        estimate.follow(factor)
        values, worst = self.triplets.values, self.triplets.norms.max(axis=1)
        floor = noise_floor(eps, float(values[0]), self.batch.passes[self.index])
        relative = relative_residuals(torch.from_numpy(worst), torch.from_numpy(values), floor, float(values[0]))
        self.batch.reporter.take(self.index, values, relative.numpy(), self.scale)
        return _judge(values, worst, self.options.tol, floor)

    def _product(self, direction: Direction, rows: Tensor) -> Tensor | None:
        """Return the scaled product of these rows, in units that the first one chooses; None where it is not finite."""
        product = self.batch.apply(direction, [(self.index, rows)])[0]
        if self.index in self.batch.nonfinite:
            return None
        self.scale = self.scale or safe_scale(product)
        return product * self.scale

    def _error(self, triplets: RitzTriplets, tangents: Tensor, pushed: Tensor, estimate: LeaveOneOut) -> float:
        sigma = torch.from_numpy(triplets.values).to(tangents)
        known = pushed - (tangents @ triplets.right.T * sigma) @ triplets.left
        whole = self.width == min(self.shape)  # which leaves nothing
        beyond = 0.0 if whole else estimate.squared(tangents)
        return math.sqrt(float(known.double().square().sum()) + beyond) / self.scale

    def _cause(self, first: Factorisation, defect: float) -> Status:
        """Return why products contradict each other, by sending those of the first round of them again."""
        sides = ((Direction.FORWARD, first.V, first.AV), (Direction.TRANSPOSED, first.U, first.AtU))
        sent = [(direction, basis.rows, stored.rows) for direction, basis, stored in sides]
        return cause(self.batch, self.index, sent, self.scale, self.options, defect=defect)


def _defect(state: Factorisation, before: Factorisation | None) -> float:
    """Return what contradicts in the products of a round and of the one before: an operator may change in between."""
    if before is None:
        return state.adjoint_defect()
    rounds = ((one.U, one.AtU, one.V, one.AV) for one in (before, state))
    return adjoint_defect(*(torch.cat([store.rows for store in stores]) for stores in zip(*rounds, strict=True)))


def _judge(values: np.ndarray, worst: np.ndarray, tol: float, floor: float) -> Status:
    """Return how the iteration stands; BUDGET while it should go on."""
    allowed = tol * values
    if (worst <= allowed).all() and values[-1] > 0.0:
        return Status.CONVERGED
    if (worst > np.maximum(allowed, floor)).any():
        return Status.BUDGET
    return Status.BREAKDOWN_EXACT if values[-1] <= floor else Status.NOISE_FLOOR
