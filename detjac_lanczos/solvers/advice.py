"""The sentences that come with a result: how it ended, what its numbers cannot say, and what to do about it."""

import math

import numpy as np
from torch import Tensor

from detjac_lanczos.solvers.attempt import CompletenessClaim
from detjac_lanczos.solvers.counting import CountingBatch
from detjac_lanczos.solvers.options import Options
from detjac_lanczos.solvers.result import Status
from detjac_lanczos.solvers.rounding import epsilon, noise_floor, unless_coarser
from detjac_lanczos.solvers.wording import rounded_up


def on_status(
    status: Status,
    method: str,
    batch: CountingBatch,
    index: int,
    options: Options,
    met: int,
    k: int,
    floor: float,
    underflow: float,
) -> str:
    """Return how a solve ended, how many triplets met the tolerance, and what to do where it ended short."""
    above = "" if options.threshold is None else f" above {options.threshold:g}"
    all_met = f"The one triplet{above} meets" if k == 1 else f"All {k} triplets{above} meet"
    none = f"No singular value{above} was found"
    all_met = f"{all_met} the tolerance {options.tol:g}." if k else f"{none}."
    some_met = f"{met} of {k} triplets meet the tolerance {options.tol:g}" if k else none
    sentences = {
        Status.CONVERGED: all_met,
        Status.BREAKDOWN_EXACT: (
            f"{_nothing_left(method)} every other singular value is zero{_under(batch, floor, underflow)}."
        ),
        Status.NOISE_FLOOR: (
            f"{some_met}; what else there is is down to the rounding of the operator: "
            "raise tol, or compute the operator in a higher precision."
        ),
        Status.BUDGET: (
            f"{met} of {k} triplets met the tolerance {options.tol:g} {_spent(batch, index, options, floor)}."
        ),
        Status.NOT_FINITE: f"{batch.nonfinite.get(index, 'A product is not finite')}: {batch.remedy}.",
        Status.NOT_ADJOINT: (
            "The transposed product is not the adjoint of the forward one"
            + unless_coarser(batch.operator_dtype, batch.defects.get(index, math.inf), max(batch.shapes[index]))
            + ": run check_operator on this operator."
        ),
        Status.NOT_DETERMINISTIC: (
            "The same block gave different products twice: switch off dropout and any other randomness."
        ),
    }
    return sentences[status]


def _spent(batch: CountingBatch, index: int, options: Options, floor: float) -> str:
    """Return when the products ran out, and what to do.

    That more of them may not help is said where no σ_j lifts the tolerance above the noise floor. A third of such
    searches go on to converge: the floor is what rounding can do, and mostly it does less.
    """
    passes, spent = batch.passes[index], batch.forward[index] + batch.transposed[index]
    when, more = "when the products ran out", "raise max_products"
    if options.max_products is None:
        when, more = f"in {passes} passes", f"give a max_products above {spent}"
    if floor and noise_floor(epsilon(batch.operator_dtype), 1.0, passes) > options.tol:
        return (
            f"{when}: raise tol, compute the operator in a higher precision, or {more}, which may not help under the "
            f"noise floor {rounded_up(floor)}"
        )
    return f"{when}: {more}, raise tol, or ask for fewer triplets"


def _nothing_left(method: str) -> str:
    if method == "dense":
        return "Nothing of the operator is left beyond these triplets, up to its rounding:"
    return "Random vectors find nothing left of the operator beyond these triplets: as far as they tell,"


def _under(batch: CountingBatch, floor: float, underflow: float) -> str:
    if floor:
        return f", or under the noise floor {rounded_up(floor)}"
    return f", or under {rounded_up(underflow)}, which products in {batch.operator_dtype} may lose" if underflow else ""


def on_zeros(status: Status, sigma: Tensor, floor: float, zeros: int) -> str:
    """Return how many of the values say no more than that they are under the floor.

    ``zeros`` of them are claimed as zeros of the operator, and not by the tolerance.
    """
    under = int((sigma <= floor).sum())
    if status is Status.NOISE_FLOOR and zeros:
        count = "One counts as zero" if zeros == 1 else f"{zeros} count as zeros"
        return f" {count}, under the noise floor {rounded_up(floor)}: their digits say nothing."
    if status is not Status.BREAKDOWN_EXACT or not under or floor == 0.0:
        return ""
    return f" So {'is one' if under == 1 else f'are {under}'} of the {len(sigma)} found: their digits say nothing."


def on_size(status: Status, batch: CountingBatch, lost: float) -> str:
    """Return what to do where products are too small for their type."""
    if status.successful or not lost:
        return ""
    return f" Its products are so small that they lose digits in {batch.operator_dtype}: scale the operator."


def on_widening(widened: tuple[tuple[int, int], ...]) -> str:
    """Return how blocks were widened, where they were."""
    if not widened:
        return ""
    passes, columns = (", ".join(str(number) for number in numbers) for numbers in zip(*widened, strict=True))
    return f" Some values coincide: from pass {passes} on, {columns} more random columns looked for further copies."


def on_energy(energy: tuple[float, float] | None) -> str:
    """Return how much the triplets hold, where that is what was asked for."""
    return "" if energy is None else f" They hold {energy[0]:.1%} to {energy[1]:.1%} of |A|_F²."


def on_error(error: float | None) -> str:
    """Return what the triplets leave, where it was estimated."""
    return "" if error is None else f" |A - U S Vᵀ|_F is about {error:.2g}: a leave-one-out estimate, no claim."


def on_completeness(completed: CompletenessClaim | None, options: Options, status: Status, probed: int) -> str:
    """Return what to do where completeness was asked for and not reached."""
    if options.delta is None or (completed is not None and completed.claim.complete):
        return ""
    if completed is None:
        if not probed:
            return " Nothing is known of missed values: no probe was made."
        if status is Status.NOT_FINITE:
            return " Nothing is known of missed values: probing for them broke off."
        return (
            " A probe found one more value for the search, and max_products left no product to probe again: give "
            "more to learn whether others are missed."
        )
    claim, counted = completed.claim, completed.claim.threshold is None
    if claim.hidden:
        told = f"{claim.line}: rounding hides whether σ_{claim.k} lies above the threshold"
        return f" {told}; move it, or compute the operator in a higher precision."
    if completed.triplets is None:
        edge, other = (f"σ_{claim.k}", "ask for another k") if counted else ("the threshold", "move it")
        if counted and claim.cluster:
            return (
                f" {claim.line}: they are closer than rounding; {other}, or, unless they are equal, compute the "
                "operator in a higher precision."
            )
        told = f"{claim.line}: rounding hides whether σ_{claim.k + 1} lies above {edge}"
        return f" {told}; {other}, or compute the operator in a higher precision."
    values, more = completed.triplets.values, _what_narrows(completed, options.tol)
    if claim.whole:
        return f" {claim.line}: {more}."
    if not counted:
        return f" {claim.line}: move the threshold into a gap of the spectrum, or {more}."
    if claim.sigma_k <= claim.floor:
        return ""
    apart = [j for j in range(max(1, claim.k // 2), claim.k) if (1.0 - options.tol) * values[j - 1] > values[j]]
    widest = max(apart, key=lambda j: values[j - 1] / max(values[j], np.finfo(np.float64).tiny), default=None)
    gap = "" if widest is None else f"ask for k = {widest}, where a gap follows"
    if claim.cluster:
        parts = f" σ_{claim.k} and σ_{claim.k + 1} are closer than the tolerance: no probe can part them"
        return f"{parts}{f'; {gap}' if gap else ''}."
    return f" Probes of {claim.products} products do not show that these are all: {more}{f', or {gap}' if gap else ''}."


def _what_narrows(completed: CompletenessClaim, tol: float) -> str:
    """Return what would narrow the bounds: products, or smaller residuals where these leave no room."""
    claim = completed.claim
    edge = claim.sigma_k if claim.threshold is None else claim.threshold
    if not completed.out_of_reach:
        return "give more products by max_products"
    return "ask for a smaller tol" if tol * edge > claim.floor else "compute the operator in a higher precision"
