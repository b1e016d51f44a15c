"""From measured triplets to the result that a user gets, the same way for every method."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from detjac_lanczos.solvers import advice
from detjac_lanczos.solvers.attempt import CompletenessClaim
from detjac_lanczos.solvers.certificate import Certificate, certify_triplets
from detjac_lanczos.solvers.counting import CountingBatch
from detjac_lanczos.solvers.factorisation import RitzTriplets
from detjac_lanczos.solvers.options import Options
from detjac_lanczos.solvers.result import Guards, Status, SVDResult, Work
from detjac_lanczos.solvers.rounding import tells_zeros


@dataclass(frozen=True, eq=False)
class Found:
    """What a method found for one operator; vectors are rows, in the units of ``scale`` times the operator.

    Attributes
    ----------
    values : Tensor, shape (k,)
    left, right : Tensor, shape (k, d_out) and (k, d_in)
    right_products, left_products : Tensor, shape (k, d_out) and (k, d_in)
        A v and Aᵀ u.
    scale : float
    first : float
        The largest value known, also where none is asked for.
    mismatch : Tensor, shape (k,), optional
        What each A v and Aᵀ u of the operator may be away from those given, where another matrix made them.
    """

    values: Tensor
    left: Tensor
    right: Tensor
    right_products: Tensor
    left_products: Tensor
    scale: float
    first: float
    mismatch: Tensor | None = None

    @classmethod
    def of(cls, triplets: RitzTriplets, scale: float, first: float) -> "Found":
        """Return Ritz triplets as what was found; ``first`` is the largest Ritz value."""
        values = torch.from_numpy(triplets.values).to(triplets.left.device)
        return cls(values, triplets.left, triplets.right, triplets.right_products, triplets.left_products, scale, first)


@dataclass(frozen=True)
class Method:
    """The method that was taken, why, and what was decided by timing on the way."""

    name: str
    why: str
    choices: dict[str, Any]


def finish(
    batch: CountingBatch,
    index: int,
    found: Found | None,
    status: Status,
    method: Method,
    options: Options,
    *,
    seconds: float,
    completed: CompletenessClaim | None = None,
    probed: int = 0,
    energy: tuple[float, float] | None = None,
    widened: tuple[tuple[int, int], ...] = (),
    error: float | None = None,
) -> SVDResult:
    """Measure what was found for operator ``index``, state what it proves and say how it ended.

    A status of success that the measurement does not bear out becomes ``noise_floor``.
    """
    forward, transposed, passes = batch.forward[index], batch.transposed[index], batch.passes[index]
    work = Work(forward, transposed, passes, batch.row_sweeps[index], seconds, probed)
    if found is None:
        return _nothing_found(batch, index, status, method, options, work)
    sigma = (found.values.to(torch.float64) / found.scale).to(batch.dtype)
    if batch.overflows(index, sigma):
        return _nothing_found(batch, index, Status.NOT_FINITE, method, options, work)
    first = found.first / found.scale
    floor, lost = batch.floor(index, first, work.passes), batch.lost(index, first)
    underflow = batch.underflow(index, first)
    residuals, certificate = certify_triplets(
        found.left.T,
        sigma,
        found.right.T,
        found.right_products.T,
        found.left_products.T,
        tol=options.tol,
        floor=floor,
        exact=status is Status.BREAKDOWN_EXACT,
        scale=found.scale,
        least=lost,
        mismatch=None if found.mismatch is None else found.mismatch / found.scale,
    )
    zeros = certificate.claimed - _met(certificate, sigma, residuals) if status is Status.BREAKDOWN_EXACT else 0
    if status is Status.BREAKDOWN_EXACT and not tells_zeros(floor, options.tol, first):
        status = Status.CONVERGED
    if status.successful and certificate.claimed < len(sigma):
        status = Status.NOISE_FLOOR
    return SVDResult(
        U=found.left.to(batch.dtype, copy=True).T,
        S=sigma,
        V=found.right.to(batch.dtype, copy=True).T,
        residuals=residuals,
        certificate=None
        if options.certify is None
        else replace(certificate, completeness=None if completed is None else completed.claim),
        status=status,
        advice=advice.on_status(
            status, method.name, batch, index, options, certificate.claimed - zeros, len(sigma), floor, underflow
        )
        + advice.on_zeros(status, sigma, floor, zeros)
        + advice.on_size(status, batch, lost)
        + advice.on_widening(widened)
        + advice.on_energy(energy)
        + advice.on_error(error)
        + advice.on_completeness(completed, options, status, probed),
        work=work,
        method=method.name,
        why=method.why,
        choices=method.choices,
        floor=floor,
        guards=None if completed is None else _guards(completed, found.scale, batch.dtype),
        energy=energy,
        widened=widened,
        error=error,
    )


def _met(certificate: Certificate, sigma: Tensor, residuals: Tensor) -> int:
    """Return how many claimed triplets meet the tolerance, and are no mere zeros."""
    sigma = sigma.to(residuals)
    met = (residuals.amax(dim=1) <= certificate.tol * sigma) & (sigma > 0.0)
    return min(certificate.claimed, int(met.sum()))


def _guards(completed: CompletenessClaim, scale: float, dtype: torch.dtype) -> Guards | None:
    """Return what was deflated beyond k, in the operator's units."""
    triplets, k = completed.triplets, completed.claim.k
    if triplets is None or not completed.claim.guards:
        return None
    values = torch.from_numpy(triplets.values[k:] / scale).to(triplets.left.device)
    return Guards(*(block.to(dtype) for block in (triplets.left[k:].T, values, triplets.right[k:].T)))


def _nothing_found(
    batch: CountingBatch,
    index: int,
    status: Status,
    method: Method,
    options: Options,
    work: Work,
) -> SVDResult:
    shape = batch.shapes[index]

    def blank(*sizes: int, dtype: torch.dtype = batch.dtype) -> Tensor:
        return torch.full(sizes, torch.nan, dtype=dtype, device=batch.device)

    return SVDResult(
        U=blank(shape[0], options.k),
        S=blank(options.k),
        V=blank(shape[1], options.k),
        residuals=blank(options.k, 2, dtype=torch.float64),
        certificate=None,
        status=status,
        advice=advice.on_status(status, method.name, batch, index, options, 0, options.k, 0.0, 0.0),
        work=work,
        method=method.name,
        why=method.why,
        choices=method.choices,
        floor=0.0,
    )
