"""How many triplets a search is to find, and how well each has to be known."""

import math

import numpy as np
import torch
from torch import Tensor

from detjac_lanczos.solvers.energy import EnergySketch, count_for
from detjac_lanczos.solvers.factorisation import Factorisation
from detjac_lanczos.solvers.options import Options
from detjac_lanczos.solvers.rounding import epsilon, rounding_of

_WELL_UNDER = 0.02


class Goal:
    """A number of triplets, all above a threshold, or enough for a share of ‖A‖_F²: the latter two by what is known.

    Attributes
    ----------
    wanted : int
        Triplets that must converge: as many as are asked for, or as what is known by now says, and ``further`` ones.
    further : int
    threshold : float or None
        In the units of the search.
    sketch : EnergySketch or None
        None also once all of ‖A‖_F² has been seen.
    energy : (float, float) or None
        Interval of the share of ‖A‖_F² that the triplets hold, where it is asked for.
    """

    def __init__(self, shape: tuple[int, int], options: Options, left: Tensor) -> None:
        self.wanted = options.k
        self.further = 0
        self.sketch = None if options.energy is None else EnergySketch(left, options.seed)
        self.energy: tuple[float, float] | None = None
        self._shape, self._options, self._dtype = shape, options, left.dtype
        self.rescale(1.0)

    def rescale(self, scale: float) -> None:
        """Take the units of the search: ``scale`` times those of the operator."""
        threshold = self._options.threshold
        self.threshold = None if threshold is None else threshold * scale

    def count(self, values: np.ndarray) -> int:
        """Return how many of the wanted triplets to return: not the further ones, nor those under the threshold.

        Values count as they are returned, rounded to the precision of the solver.
        """
        if self.threshold is not None:
            return int((torch.from_numpy(values).to(self._dtype).double() > self.threshold).sum())
        return len(values) - self.further

    def reconsider(self, state: Factorisation, largest: float, eps: float) -> None:
        """Set how many triplets are wanted by the Ritz values, where no number is asked for.

        Parameters
        ----------
        state : Factorisation
        largest : float
            What is known of σ_1 before there are any.
        eps : float
            ε of the products.
        """
        if self.threshold is not None or self.sketch is not None:
            self.wanted = min(self._aim(state, largest, eps) + self.further, *self._shape)

    def want_further(self) -> None:
        """Look for one more triplet than is asked for."""
        if self.wanted < min(self._shape):
            self.further = 1
            self.wanted += 1

    def forgo(self, count: int) -> None:
        """Be content with ``count`` triplets, none of them a further one."""
        self.wanted, self.further = count, 0

    def tolerated(self, values: np.ndarray, floor: float) -> np.ndarray:
        """Residuals that end the search: ``tol`` σ_j; a value under the threshold is only to stay well under it.

        Such a value may be as small as rounding makes it: no residual under the ``floor`` is asked for then.
        """
        tolerated = self._options.tol * values
        if self.threshold is None:
            return np.asarray(tolerated)
        kept_under = np.minimum(np.maximum(_WELL_UNDER * values, floor), _WELL_UNDER * (self.threshold - values))
        return np.where(values <= self.threshold, np.maximum(tolerated, kept_under), tolerated)

    def _aim(self, state: Factorisation, largest: float, eps: float) -> int:
        """Return how many triplets the threshold, the first below it included, or the energy asks for."""
        values = state.values()
        if self.threshold is not None:
            return int((values > self.threshold).sum()) + 1
        assert self._options.energy is not None and self.sketch is not None
        first = float(values[0]) if len(values) else largest
        low, high = self.sketch.total(state.U.rows, state.AtU.rows, first)
        count = count_for(self._options.energy, values, high)
        self.energy = _share(values[:count], low, high, max(eps, epsilon(self._dtype)))
        return count

    def restate_energy(self, state: Factorisation, values: np.ndarray, eps: float) -> None:
        """State the share that these values hold again, without a bound of σ_1: it was not found."""
        if self.sketch is not None:
            total = self.sketch.total(state.U.rows, state.AtU.rows, math.inf)
            self.energy = _share(values, *total, max(eps, epsilon(self._dtype)))


def _share(values: np.ndarray, low: float, high: float, eps: float) -> tuple[float, float]:
    """Return what share of ‖A‖_F² values hold, and what rounding may make of it.

    Products in precision ε move the root of what is held by c ε of it, and that of the rest by c ε ‖A‖_F. The rest is
    moreover a difference of sums of products, to c ε ‖A‖_F².
    """
    rounding, lost = rounding_of(eps, 1.0), rounding_of(eps, high)
    held, noise = float((values**2).sum()), rounding * math.sqrt(high)
    if held == 0.0:
        return (0.0, 0.0) if low > 0.0 else (1.0, 1.0)
    least, most = (1.0 - rounding) ** 2 * held, (1.0 + rounding) ** 2 * held
    fewer = max(math.sqrt(max(low - held - lost, 0.0)) - noise, 0.0) ** 2
    more = (math.sqrt(max(high - held, 0.0) + lost) + noise) ** 2
    return least / (least + more), most / (most + fewer)
