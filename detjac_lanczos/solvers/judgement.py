"""When residuals of a search are small enough: what is tolerated of them, what rounding hides, and when to give up."""

import numpy as np
import torch
from torch import Tensor

from detjac_lanczos.solvers.factorisation import RitzTriplets
from detjac_lanczos.solvers.goal import Goal
from detjac_lanczos.solvers.residuals import are_zeros, relative_residuals
from detjac_lanczos.solvers.rounding import (
    adjoint_bound,
    epsilon_at,
    noise_floor,
    rounding_of,
    safe_scale,
    tells_zeros,
    underflow,
)

_STALLED_AFTER = 8
"""Passes without progress. Chosen: four each way."""

_PROGRESS = 0.1
"""Fall of the logarithm of a residual that is progress. Chosen; what random columns take of rounding is less.

Columns sent in vain hold a part b/d of the directions that rounding lies in: four passes a side of b columns each
bring every residual down by 2 b/d, a 36th where 8 of 576 are sent. Added over many residuals that looks like progress.
"""


class Patience:
    """Waits some passes for any residual to move."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Wait anew."""
        self._best = np.empty(0)
        self._since_best = 0

    def ends(self, residuals: np.ndarray) -> bool:
        """Take the residuals after one more pass; True where none has moved for eight."""
        levels = np.log(residuals)
        if len(levels) != len(self._best):
            self._best, self._since_best = levels, 0
        elif (levels < self._best - _PROGRESS).any():
            self._best, self._since_best = np.minimum(self._best, levels), 0
        else:
            self._since_best += 1
        return self._since_best >= _STALLED_AFTER


class Judge:
    """Holds Ritz triplets of one search against its goal, and against the rounding of its products.

    Attributes
    ----------
    scale : float
        Power of two that products are multiplied with, so that squares neither overflow nor vanish.
    largest : float
        The largest Ritz value so far, the longest product before there is one; scaled, as all that follows.
    passes : int
        Sweeps so far, those of probes included.
    patience : Patience
    """

    def __init__(self, shape: tuple[int, int], operator_dtype: torch.dtype, goal: Goal, tol: float) -> None:
        self.scale = 1.0
        self.largest = 0.0
        self.passes = 0
        self.patience = Patience()
        self._longer, self._dtype, self._goal, self._tol = max(shape), operator_dtype, goal, tol

    @property
    def eps(self) -> float:
        """The operator's ε, for products as long as the longest so far."""
        return epsilon_at(self._dtype, self.largest / self.scale, self._longer)

    @property
    def floor(self) -> float:
        """The noise floor c ε σ₁ √passes."""
        return noise_floor(self.eps, self.largest, self.passes)

    @property
    def negligible(self) -> float:
        """Length under which a direction is taken for rounding, c ε σ₁."""
        return rounding_of(self.eps, self.largest)

    @property
    def underflow(self) -> float:
        """What products that are all zero may hide."""
        return underflow(self._dtype, self.largest, self._longer)

    def choose_scale(self, product: Tensor) -> None:
        """Take units in which this product is about as long as 1, where its own are far from that."""
        self.scale = safe_scale(product)
        self._goal.rescale(self.scale)

    def scaled(self, product: Tensor) -> Tensor:
        """Return a product in these units, which the first that is not zero chooses, where no sketch has."""
        if self.largest == 0.0 and self._goal.sketch is None:
            self.choose_scale(product)
        return product if self.scale == 1.0 else product * self.scale

    def see(self, length: float) -> None:
        """Take note of a Ritz value, or of the length of a product."""
        self.largest = max(self.largest, length)

    def relative(self, triplets: RitzTriplets) -> np.ndarray:
        """Return max(ρ_R, ρ_L) / σ_j of each triplet, by σ_1 where σ_j is under the floor."""
        worst, values = torch.from_numpy(triplets.norms.max(axis=1)), torch.from_numpy(triplets.values)
        return relative_residuals(worst, values, self.floor, self.largest).numpy()

    def tolerated(self, values: np.ndarray) -> np.ndarray:
        """Return the residuals of triplets of these values that end the search, see :meth:`Goal.tolerated`."""
        return self._goal.tolerated(values, self.floor)

    def closed(self, values: np.ndarray) -> np.ndarray:
        """Return the residuals with which triplets of these values need no further direction."""
        least = np.where(values > self.floor, self.negligible, self.floor)
        return np.maximum(np.maximum(self.tolerated(values), least), np.finfo(np.float64).tiny)

    def solved(self, triplets: RitzTriplets, *, exact: bool) -> bool:
        """Whether all residuals meet ``tol``; ``exact`` lets values under a low floor count as zeros of A.

        A value of 0 meets no ``tol``, even where its residual happens to round to 0 as well: where the floor is low, it
        takes a space known as a whole to tell a zero of A.
        """
        values, worst = triplets.values, triplets.norms.max(axis=1)
        met = worst <= self.tolerated(values)
        if exact:
            met |= are_zeros(values, worst, self.floor, self._tol, self.largest)
        elif tells_zeros(self.floor, self._tol, self.largest):
            met &= values > 0.0
        return bool(met.all())

    def stalled(self, triplets: RitzTriplets) -> bool:
        """Whether every open residual is under the noise floor, and none has moved for some passes."""
        allowed = np.maximum(self.tolerated(triplets.values), self.floor)
        if (triplets.norms.max(axis=1) > allowed).any():
            return False
        return self.patience.ends(np.maximum(self.relative(triplets), self._tol))

    def contradicts(self, defect: float) -> bool:
        """Whether products differ from those of one operator and its transpose by more than rounding."""
        return defect > adjoint_bound(self.eps, max(self._longer, self.passes))
