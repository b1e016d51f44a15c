"""One attempt at the claim of completeness for one operator: its guards, its probe, and when to stop."""

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from detjac_lanczos.solvers.completeness import GUARDS, Completeness
from detjac_lanczos.solvers.enclosure import largest_tau, upper_bounds, whole_bounds
from detjac_lanczos.solvers.factorisation import RitzTriplets
from detjac_lanczos.solvers.lanczos_polynomial import steps_left
from detjac_lanczos.solvers.probe import Deflation, Probe
from detjac_lanczos.solvers.restart import SPARE_VECTORS
from detjac_lanczos.solvers.result import Status
from detjac_lanczos.solvers.rounding import tells_zeros
from detjac_lanczos.solvers.search import Search

PRODUCTS = 24
"""Products that a probe may take in any case. After so many, τ was 1.24 σ_9 at most on the Jacobians of both embedded
models (k = 8, δ = 1e-6, no guards); after 16 it was up to 1.57 σ_9."""

SHARE = 0.6
"""Products that a probe may take where that is expected to complete the claim, by those of the search. Chosen: a claim
is to cost less than what it is about."""

_WELL_ENOUGH = 0.1
"""Residuals of a guard, by s_k. Chosen: they enter the bounds squared."""

MOST_CLAIMS = 6
"""Vectors and claims together that may share δ. Chosen: each has a tenth of the share before it."""

_LOOSE = 2.0
"""τ by what the probe has seen, from which on another vector is drawn. Chosen."""

_FLOOR_LATER = 2.0
"""What the floor of a claim may be by that of the search: it grows with the root of the passes, those of the probe
included. Chosen: four times as many."""


@dataclass(frozen=True)
class CompletenessClaim:
    """A claim about one operator, and the triplets that it rests on: the k claimed and the guards.

    ``triplets`` is None where the whole matrix was seen. ``out_of_reach``: with the residuals of the triplets, no bound
    of what is left would complete the claim.
    """

    claim: Completeness
    triplets: RitzTriplets | None
    out_of_reach: bool = False


class Attempt:
    """A probe of what a search has left, with the decision after each product.

    It stops as soon as the claim is complete; when something was found; or when more products cannot pay: after
    ``PRODUCTS`` of them (or what ``max_products`` leaves), unless the rate at which the polynomial grows promises
    completeness within ``SHARE`` of what the search took (or within what ``max_products`` leaves).

    Parameters
    ----------
    search : Search
        Ended.
    number : int
        Claims that have failed before: each spends a part of δ.
    copies : bool
        Whether a further copy of s_k is worth another claim; once it is.

    Attributes
    ----------
    found : bool
        The probe holds a value that belongs into the search.
    ended : bool
    """

    def __init__(self, search: Search, number: int = 0, *, copies: bool = True) -> None:
        options = search.options
        assert options.delta is not None
        self.search = search
        self.delta: float = options.delta
        self.number = number
        self._wants_copies = copies
        self._searched = search.products - search.probed
        self.k = search.k
        self.triplets = search.state.ritz(self.k + SPARE_VECTORS)
        values = self.triplets.values
        if search.goal.threshold is None:
            self._edge, goals = float(values[self.k - 1]), limits(values[: self.k], options.tol, search.judge.floor)
        else:
            defect = deflation_of(self.triplets.head(self.k + 1)).defect * float(values[0])
            self._edge = search.goal.threshold
            goals = np.r_[np.full(self.k, np.inf), search.goal.threshold - _FLOOR_LATER * search.judge.floor - defect]
        count, self._reach = guarded(self.triplets, goals, self._edge, search.judge.floor)
        self.deflation = deflation_of(self.triplets.head(count))
        self.probe = Probe(self.deflation, search.shape, eps=search.judge.eps, seed=options.seed, number=number)
        self.found = self._copy = False
        self.ended = search.left < 1

    @property
    def row(self) -> Tensor | None:
        """What to send next; None where the attempt has ended."""
        return None if self.ended else self.probe.row

    def absorb(self, product: Tensor) -> None:
        """Take the product of ``row`` and decide whether to go on; not where it contradicts those of the search."""
        assert self.probe.row is not None
        product = product.to(self.deflation.left.dtype) * self.search.judge.scale
        self.search.hold_against(self.probe.direction, self.probe.row, product)
        self.search.count_probed()
        if self.search.status is Status.NOT_ADJOINT:
            self.ended = True
            return
        self.probe.absorb(product)
        edge, floor, tol = self._edge, self.search.judge.floor, self.search.options.tol
        counted = self.search.goal.threshold is None
        tau, seen, held = self.probe.tau(self.delta), self.probe.seen, self.probe.held
        more_claims = self._next_number < MOST_CLAIMS
        missed = held > (1.0 + tol if counted else 1.0) * edge + floor
        copy = not missed and self._wants_copies and counted and edge > floor and held >= (1.0 - tol) * edge
        if more_claims and (missed or copy):
            self.found = self.ended = True
            self._copy = copy
        elif tau + floor < min(edge, self._reach) or not self._promising():
            self.ended = True
        elif self.probe.row is None and more_claims:
            loose = tau > _LOOSE * max(seen, floor)
            self.ended = not loose and seen + floor >= min(edge, self._reach)
            if not self.ended:
                self.probe.draw()

    def feed(self) -> None:
        """Give the vectors of the probe to the search, and let it go on; a copy of s_k is to converge beside it."""
        probe, search = self.probe, self.search
        if self._copy:
            self._wants_copies = False
            search.goal.want_further()
        for direction, sent in probe.sent.items():
            search.state.take(direction, sent.rows, probe.returned[direction].rows)
        search.reopen()

    def next(self) -> "Attempt":
        """Return the attempt after this one: fresh vectors, another part of δ."""
        return Attempt(self.search, self._next_number, copies=self._wants_copies)

    def completed(self) -> CompletenessClaim | None:
        """Return what can be claimed; None where no product could be spent on it."""
        search, deflation = self.search, self.deflation
        if not self.probe.steps[0] and self.probe.dimension:
            return None
        claim = stated(
            self.probe,
            k=self.k,
            delta=self.delta,
            tol=search.options.tol,
            floor=search.judge.floor,
            underflow=search.judge.underflow,
            scale=search.judge.scale,
            threshold=search.options.threshold,
        )
        claim = replace(claim, products=search.probed)
        beyond = max([self.probe.seen, *self.triplets.values[deflation.count : deflation.count + 1]])
        triplets = self.triplets.head(deflation.count)
        return CompletenessClaim(claim, triplets, out_of_reach=bool(self._reach <= beyond + search.judge.floor))

    @property
    def _next_number(self) -> int:
        return self.number + len(self.probe.steps)

    def _promising(self) -> bool:
        """Whether another product may be spent."""
        spent = sum(self.probe.steps)
        if self.search.left < 1:
            return False
        if spent < PRODUCTS:
            return True
        if self.probe.row is None:
            return False
        target = min(self._edge, self._reach) - self.search.judge.floor
        left = steps_left(self.probe.coefficients, self.probe.log_gamma(self.delta), target)
        unbounded = self.search.options.max_products is None
        most = SHARE * self._searched - spent if unbounded else self.search.left
        return left <= most and most >= 1


def stated(
    probe: Probe,
    *,
    k: int,
    delta: float,
    tol: float,
    floor: float,
    underflow: float,
    scale: float,
    threshold: float | None,
) -> Completeness:
    """Return what a probe proves, in units of the operator: those of the probe are ``scale`` times as large.

    Parameters
    ----------
    probe : Probe
    k : int
        Triplets claimed; those that it deflates beyond are guards.
    delta, tol : float
    floor : float
        What rounding can do to τ, in units of the probe.
    underflow : float
        What products may hide that are all zero, in these units; 0 where one is not.
    scale : float
    threshold : float or None
        The k triplets are those of all values above it, which is then what makes the claim complete.
    """
    deflation, tau = probe.deflation, probe.tau(delta)
    values = deflation.values
    first, last = float(values[0]), float(values[k - 1]) if k else 0.0
    rounding = max(floor, underflow) + deflation.defect * first
    bare = upper_bounds(values, deflation.right_gram, deflation.left_gram, tau + floor)
    upper = bare + rounding
    if probe.dimension == 0:
        gram = deflation.right_gram if probe.shape[1] == deflation.count else deflation.left_gram
        bare = np.minimum(bare, whole_bounds(values, gram))
        upper = np.r_[bare[:-1] + rounding, 0.0]
    narrow = bool((bare[:k] <= limits(values[:k], tol, floor)).all())
    zero = last <= floor and tells_zeros(floor, tol, first)
    return Completeness.of(
        values.tolist(),
        upper.tolist(),
        k=k,
        index_exact=narrow and (tau + floor < last or zero),
        tau=tau,
        beyond=seen_beyond(probe, k),
        rounding=rounding,
        floor=floor,
        tol=tol,
        scale=scale,
        threshold=threshold,
        seed=probe.seed,
        delta=delta,
        number=probe.number,
        steps=probe.steps,
    )


def seen_beyond(probe: Probe, k: int) -> float:
    """Return the largest value that a probe or its guards have shown beside those of k triplets."""
    return max([probe.seen, *probe.deflation.values[k : k + 1].tolist()])


def limits(values: np.ndarray, tol: float, floor: float) -> np.ndarray:
    """Return how high each σ_j may lie for its triplet to be called that of σ_j: ``tol`` above its value."""
    return np.maximum((1.0 + tol) * values, floor)


def guarded(triplets: RitzTriplets, goals: np.ndarray, edge: float, floor: float) -> tuple[int, float]:
    """Return how many triplets to deflate, and the τ that would then complete the claim.

    Guards are taken while their residuals are below a tenth of s_k. Each lowers what is left, and narrows what τ may
    be: the count with the best ratio of the two is chosen, before any random vector is drawn.

    Parameters
    ----------
    triplets : RitzTriplets
    goals : ndarray
        How high each σ_j may lie in a complete claim; infinite where that does not matter.
    edge : float
        s_k, or the threshold.
    floor : float

    Returns
    -------
    count : int
        At least as many as goals, where there are so many; at most ``GUARDS`` more.
    reach : float
        -∞ where no τ would do.
    """
    values, worst = triplets.values, triplets.norms.max(axis=1)
    least = min(len(goals), len(values))
    most = max(least, min(least + GUARDS, len(values) - 1))
    poor = (worst[least:most] > _WELL_ENOUGH * edge) | (values[least:most] <= floor)
    most = least + int(np.argmax(np.r_[poor, True]))
    measured = deflation_of(triplets.head(most))
    best, chosen = -np.inf, (least, -np.inf)
    for count in range(least, most + 1):
        block = (slice(count), slice(count))
        reach = largest_tau(values[:count], measured.right_gram[block], measured.left_gram[block], goals[:count])
        left = max(values[count] if count < len(values) else 0.0, floor, np.finfo(np.float64).tiny)
        with np.errstate(over="ignore"):
            ratio = reach / left
        if count == least or ratio > best:
            best, chosen = ratio, (count, reach)
    return chosen


def deflation_of(triplets: RitzTriplets) -> Deflation:
    """Return triplets of a search as those that a probe is kept away from."""
    return Deflation.of(triplets.values, triplets.left, triplets.right, triplets.right_products, triplets.left_products)
