"""From measured triplets to the result that a user gets: one road for every method."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detjac_lanczos.solvers.attempt import Completed
from detjac_lanczos.solvers.certificate import certify_triplets
from detjac_lanczos.solvers.counting import CountingBatch
from detjac_lanczos.solvers.factorisation import RitzTriplets
from detjac_lanczos.solvers.options import Options
from detjac_lanczos.solvers.result import Guards, Status, SVDResult, Work
from detjac_lanczos.solvers.rounding import noise_floor, tells_zeros
from detjac_lanczos.solvers.wording import rounded_up


@dataclass(frozen=True)
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
    """

    values: Tensor
    left: Tensor
    right: Tensor
    right_products: Tensor
    left_products: Tensor
    scale: float
    first: float

    @classmethod
    def of(cls, triplets: RitzTriplets, scale: float, first: float) -> "Found":
        """Return Ritz triplets as what was found; ``first`` is the largest Ritz value."""
        values = torch.from_numpy(triplets.values).to(triplets.left.device)
        return cls(values, triplets.left, triplets.right, triplets.right_products, triplets.left_products, scale, first)


@dataclass(frozen=True)
class Road:
    """The method that was taken, why, and what was decided by timing on the way."""

    method: str
    why: str
    choices: dict[str, Any]


def finish(
    batch: CountingBatch,
    index: int,
    found: Found | None,
    status: Status,
    road: Road,
    options: Options,
    *,
    seconds: float,
    certify: bool,
    completed: Completed | None = None,
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
    shape = batch.shapes[index]
    if found is None:
        return _nothing_found(batch, index, status, road, options, work, shape)
    sigma = (found.values.to(torch.float64) / found.scale).to(batch.dtype)
    first = found.first / found.scale
    floor, lost = noise_floor(batch.spacing(index, first), first, work.passes), batch.lost(index, first)
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
    )
    if status is Status.BREAKDOWN_EXACT and not tells_zeros(floor, options.tol, first):
        status = Status.CONVERGED
    if status.successful and certificate.claimed < len(sigma):
        status = Status.NOISE_FLOOR
    return SVDResult(
        U=found.left.to(batch.dtype, copy=True).T,
        S=sigma,
        V=found.right.to(batch.dtype, copy=True).T,
        residuals=residuals,
        certificate=replace(certificate, completeness=None if completed is None else completed.claim)
        if certify
        else None,
        status=status,
        advice=_advice(status, batch, index, options, certificate.claimed, len(sigma), floor)
        + _on_zeros(status, sigma, floor)
        + _on_size(status, batch, lost)
        + _on_widening(widened)
        + _on_energy(energy)
        + _on_error(error)
        + _on_completeness(completed, options),
        work=work,
        method=road.method,
        why=road.why,
        choices=road.choices,
        floor=floor,
        guards=None if completed is None else _guards(completed, found.scale, batch.dtype),
        energy=energy,
        widened=widened,
        error=error,
    )


def _guards(completed: Completed, scale: float, dtype: torch.dtype) -> Guards | None:
    """Return what was deflated beyond k, in the operator's units."""
    triplets, k = completed.triplets, completed.claim.k
    if triplets is None or not completed.claim.guards:
        return None
    values = torch.from_numpy(triplets.values[k:] / scale).to(triplets.left.device)
    return Guards(*(block.to(dtype) for block in (triplets.left[k:].T, values, triplets.right[k:].T)))


def _on_zeros(status: Status, sigma: Tensor, floor: float) -> str:
    """Return how many of the values say no more than that they are under the floor."""
    under = int((sigma <= floor).sum())
    if status is not Status.BREAKDOWN_EXACT or not under or floor == 0.0:
        return ""
    return f" So {'is one' if under == 1 else f'are {under}'} of the {len(sigma)} found: their digits say nothing."


def _on_size(status: Status, batch: CountingBatch, lost: float) -> str:
    """Return what to do where products are too small for their type."""
    if status.successful or not lost:
        return ""
    return f" Its products are so small that they lose digits in {batch.operator_dtype}: scale the operator."


def _on_widening(widened: tuple[tuple[int, int], ...]) -> str:
    """Return how blocks were widened, where they were."""
    if not widened:
        return ""
    passes, columns = (", ".join(str(number) for number in numbers) for numbers in zip(*widened, strict=True))
    return f" Some values coincide: from pass {passes} on, {columns} more random columns looked for further copies."


def _on_energy(energy: tuple[float, float] | None) -> str:
    """Return how much the triplets hold, where that is what was asked for."""
    return "" if energy is None else f" They hold {energy[0]:.1%} to {energy[1]:.1%} of |A|_F²."


def _on_error(error: float | None) -> str:
    """Return what the triplets leave, where it was estimated."""
    return "" if error is None else f" |A - U S Vᵀ|_F is about {error:.2g}: a leave-one-out estimate, no claim."


def _on_completeness(completed: Completed | None, options: Options) -> str:
    """Return what to do where completeness was asked for and not reached."""
    if options.delta is None or (completed is not None and completed.claim.complete):
        return ""
    if completed is None:
        return " Nothing is known of missed values: no probe was made."
    if completed.triplets is None:
        hidden = f"{completed.claim.line}: rounding hides whether σ_{completed.claim.k + 1} lies above the threshold"
        return f" {hidden}; move it, or compute the operator in a higher precision."
    claim, values = completed.claim, completed.triplets.values
    if claim.threshold is not None:
        return f" {claim.line}: move the threshold into a gap of the spectrum, or give more products by max_products."
    if claim.sigma_k <= claim.floor:
        return ""
    apart = [j for j in range(max(1, claim.k // 2), claim.k) if (1.0 - options.tol) * values[j - 1] > values[j]]
    widest = max(apart, key=lambda j: values[j - 1] / max(values[j], np.finfo(np.float64).tiny), default=None)
    gap = "" if widest is None else f", or ask for k = {widest}, where a gap follows"
    if claim.cluster:
        return f" σ_{claim.k} and σ_{claim.k + 1} are closer than the tolerance: no probe can part them{gap}."
    return f" Probes of {claim.products} products do not show that these are all: give more by max_products{gap}."


def _nothing_found(
    batch: CountingBatch,
    index: int,
    status: Status,
    road: Road,
    options: Options,
    work: Work,
    shape: tuple[int, int],
) -> SVDResult:
    def blank(*sizes: int, dtype: torch.dtype = batch.dtype) -> Tensor:
        return torch.full(sizes, torch.nan, dtype=dtype, device=batch.device)

    return SVDResult(
        U=blank(shape[0], options.k),
        S=blank(options.k),
        V=blank(shape[1], options.k),
        residuals=blank(options.k, 2, dtype=torch.float64),
        certificate=None,
        status=status,
        advice=_advice(status, batch, index, options, 0, options.k, 0.0),
        work=work,
        method=road.method,
        why=road.why,
        choices=road.choices,
    )


def _advice(
    status: Status, batch: CountingBatch, index: int, options: Options, claimed: int, k: int, floor: float
) -> str:
    above = "" if options.threshold is None else f" above {options.threshold:g}"
    met = f"The one triplet{above} meets" if k == 1 else f"All {k} triplets{above} meet"
    sentences = {
        Status.CONVERGED: f"{met} the tolerance {options.tol:g}.",
        Status.BREAKDOWN_EXACT: (
            "Nothing of the operator is left outside the space that was found, up to its rounding: every singular "
            f"value beyond it is zero{f', or under the noise floor {rounded_up(floor)}' if floor else ''}."
        ),
        Status.NOISE_FLOOR: (
            f"{claimed} of {k} triplets meet the tolerance {options.tol:g}; what else there is is down to the "
            "rounding of the operator: raise tol, or compute the operator in a higher precision."
        ),
        Status.BUDGET: (
            f"{claimed} of {k} triplets met the tolerance {options.tol:g} when the products ran out: raise "
            "max_products, raise tol, or ask for fewer triplets."
        ),
        Status.NOT_FINITE: f"{batch.nonfinite.get(index, 'A product is not finite')}: {batch.remedy}.",
        Status.NOT_ADJOINT: (
            "The transposed product is not the adjoint of the forward one: run check_operator on this operator."
        ),
        Status.NOT_DETERMINISTIC: (
            "The same block gave different products twice: switch off dropout and any other randomness."
        ),
    }
    return sentences[status]
