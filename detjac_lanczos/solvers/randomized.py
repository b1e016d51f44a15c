"""The randomised method: subspace iteration with a wide block, measured like all others."""

import math

import numpy as np
import torch

from detjac_lanczos.solvers.basis import random_rows
from detjac_lanczos.solvers.contradiction import cause
from detjac_lanczos.solvers.counting import CountingBatch, Direction
from detjac_lanczos.solvers.factorisation import Factorisation, RitzTriplets, adjoint_defect
from detjac_lanczos.solvers.finish import Found, Method, finish
from detjac_lanczos.solvers.leave_one_out import LeaveOneOut, orthonormal_factor
from detjac_lanczos.solvers.options import Options
from detjac_lanczos.solvers.result import Status, SVDResult
from detjac_lanczos.solvers.rounding import adjoint_bound, noise_floor, safe_scale

_OVERSAMPLING = 8
_DEFAULT_PASSES = 60


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
    shape = batch.shapes[index]
    width = min(options.k + _OVERSAMPLING, *shape)
    if options.max_products is not None:
        width = min(width, options.max_products // 2)
    model = torch.empty(0, shape[0], dtype=batch.dtype, device=batch.device)
    factor, cotangents = orthonormal_factor(random_rows(width, model, torch.Generator().manual_seed(options.seed)))
    estimate: LeaveOneOut | None = None
    error: float | None = None
    triplets: RitzTriplets | None = None
    before: Factorisation | None = None
    status, scale = Status.BUDGET, 0.0
    limit = options.max_products if options.max_products is not None else _DEFAULT_PASSES * width
    while status is Status.BUDGET and _affords(batch, index, 2 * width, limit):
        pulled = batch.apply(Direction.TRANSPOSED, [(index, cotangents)])[0]
        if index in batch.nonfinite:
            status = Status.NOT_FINITE
            break
        scale = scale or safe_scale(pulled)
        estimate = estimate or LeaveOneOut(factor, pulled * scale)
        factor, tangents = orthonormal_factor(pulled * scale)
        estimate.follow(factor)
        pushed = batch.apply(Direction.FORWARD, [(index, tangents)])[0]
        if index in batch.nonfinite:
            status = Status.NOT_FINITE
            break
        state = Factorisation(shape, batch.dtype, batch.device)
        state.absorb(Direction.TRANSPOSED, cotangents, pulled * scale)
        state.absorb(Direction.FORWARD, tangents, pushed * scale)
        eps = batch.spacing(index, state.longest / scale)
        if _defect(state, before) > adjoint_bound(eps, max(shape)):
            first = before or state
            sides = ((Direction.FORWARD, first.V, first.AV), (Direction.TRANSPOSED, first.U, first.AtU))
            sent = [(direction, basis.rows, stored.rows) for direction, basis, stored in sides]
            status = cause(batch, index, sent, scale, options)
            break
        before = state
        triplets = state.ritz(options.k)
        status = _judge(triplets, options, eps, batch.passes[index], full=width == min(shape))
        sigma = torch.from_numpy(triplets.values).to(tangents)
        known = pushed * scale - (tangents @ triplets.right.T * sigma) @ triplets.left
        beyond = 0.0 if width == min(shape) else estimate.squared(tangents)  # a basis of the whole space leaves nothing
        error = math.sqrt(float(known.double().square().sum()) + beyond) / scale
        factor, cotangents = orthonormal_factor(pushed * scale)
        estimate.follow(factor)
    found = None
    if triplets is not None and status not in (Status.NOT_ADJOINT, Status.NOT_DETERMINISTIC):
        found = Found.of(triplets, scale, float(triplets.values[0]))
    return finish(batch, index, found, status, method, options, seconds=batch.seconds, error=error)


def _defect(state: Factorisation, before: Factorisation | None) -> float:
    """Return what contradicts in the products of a round and of the one before: an operator may change in between."""
    if before is None:
        return state.adjoint_defect()
    rounds = (before, state)
    left, pulled = (
        torch.cat([store.rows for store in stores])
        for stores in zip(*((one.U, one.AtU) for one in rounds), strict=True)
    )
    right, pushed = (
        torch.cat([store.rows for store in stores]) for stores in zip(*((one.V, one.AV) for one in rounds), strict=True)
    )
    return adjoint_defect(left, pulled, right, pushed)


def _affords(batch: CountingBatch, index: int, columns: int, limit: int) -> bool:
    """Whether another round fits; the first is always made."""
    spent = batch.forward[index] + batch.transposed[index]
    return spent == 0 or spent + columns <= limit


def _judge(triplets: RitzTriplets, options: Options, eps: float, passes: int, *, full: bool) -> Status:
    """Return how the iteration stands; BUDGET while it should go on."""
    worst, allowed = triplets.norms.max(axis=1), options.tol * triplets.values
    floor = noise_floor(eps, float(triplets.values[0]), passes)
    if (worst <= allowed).all() and triplets.values[0] > 0.0:
        return Status.CONVERGED
    if (worst > np.maximum(allowed, floor)).any():
        return Status.BUDGET
    return Status.BREAKDOWN_EXACT if full or triplets.values[-1] <= floor else Status.NOISE_FLOOR
