"""The randomised road: subspace iteration with a wide block, measured like all others."""

import numpy as np
import torch

from detjac_lanczos.solvers.basis import orthonormal_rows, random_rows
from detjac_lanczos.solvers.counting import CountingBatch, Direction
from detjac_lanczos.solvers.factorisation import Factorisation, RitzTriplets
from detjac_lanczos.solvers.finish import Found, Road, finish
from detjac_lanczos.solvers.options import Options
from detjac_lanczos.solvers.result import Status, SVDResult
from detjac_lanczos.solvers.rounding import adjoint_bound, epsilon, noise_floor

_OVERSAMPLING = 8
_DEFAULT_PASSES = 60


def solve_randomized(batch: CountingBatch, options: Options, road: Road, *, certify: bool) -> list[SVDResult]:
    """Find leading triplets by block power iteration of width k + 8 from random cotangents.

    Ritz triplets come from one basis on each side, with the products of both, so residuals on both sides are measured.
    Converges like (σ_{k+9} / σ_k)^passes: few wide passes where the spectrum falls fast, hopeless where it is flat.

    Source: Halko, Martinsson, Tropp 2011, algorithm 4.4; two-sided extraction as in the Lanczos road.
    """
    return [_solve_one(batch, index, options, road, certify) for index in range(len(batch))]


def _solve_one(batch: CountingBatch, index: int, options: Options, road: Road, certify: bool) -> SVDResult:
    shape = batch.shapes[index]
    eps = epsilon(batch.operator_dtype)
    width = min(options.k + _OVERSAMPLING, *shape)
    model = torch.empty(0, shape[0], dtype=batch.dtype, device=batch.device)
    cotangents = orthonormal_rows(random_rows(width, model, torch.Generator().manual_seed(options.seed)))
    triplets: RitzTriplets | None = None
    status = Status.BUDGET
    limit = options.max_products if options.max_products is not None else _DEFAULT_PASSES * width
    while batch.forward[index] + batch.transposed[index] + 2 * width <= max(limit, 2 * width):
        pulled = batch.apply(Direction.TRANSPOSED, [(index, cotangents)])[0]
        if index in batch.nonfinite:
            status = Status.NOT_FINITE
            break
        tangents = orthonormal_rows(pulled)
        pushed = batch.apply(Direction.FORWARD, [(index, tangents)])[0]
        if index in batch.nonfinite:
            status = Status.NOT_FINITE
            break
        state = Factorisation(shape, batch.dtype, batch.device)
        state.absorb(Direction.TRANSPOSED, cotangents, pulled)
        state.absorb(Direction.FORWARD, tangents, pushed)
        if state.adjoint_defect() > adjoint_bound(eps, max(shape)):
            status = Status.NOT_ADJOINT
            break
        triplets = state.ritz(options.k)
        worst = triplets.norms.max(axis=1)
        if (worst <= options.tol * triplets.values).all():
            status = Status.CONVERGED
            break
        floor = noise_floor(eps, float(triplets.values[0]), batch.passes[index])
        if (worst <= np.maximum(options.tol * triplets.values, floor)).all():
            full = width == min(shape) or float(triplets.values[-1]) <= floor
            status = Status.BREAKDOWN_EXACT if full else Status.NOISE_FLOOR
            break
        cotangents = orthonormal_rows(pushed)
    found = None
    if triplets is not None and status is not Status.NOT_ADJOINT:
        found = Found(
            torch.from_numpy(triplets.values).to(batch.device),
            triplets.left,
            triplets.right,
            triplets.right_products,
            triplets.left_products,
        )
    return finish(batch, index, found, status, road, options, seconds=batch.seconds, certify=certify)
