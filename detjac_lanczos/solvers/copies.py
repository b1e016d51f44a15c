"""Further copies of multiple singular values: when a search has to look for them, and for how long."""

import numpy as np

from detjac_lanczos.solvers.factorisation import RitzTriplets

PASSES = 6
"""Passes that fresh random columns get before the triplets are believed again."""


class CopyProbe:
    """Counts the random columns that a search grew from, and the passes of a probe by fresh ones.

    A Krylov space holds at most as many copies of a multiple singular value as random columns it grew from: where that
    many values coincide, more copies may exist unseen. A probe that found something calls for another.

    Attributes
    ----------
    drawn : int
        Random columns so far.
    passes_left : int
        Of the probe that runs; 0 where none does.
    """

    def __init__(self) -> None:
        self.drawn = 0
        self.passes_left = 0
        self._found_more = False

    @property
    def starts(self) -> bool:
        """Whether the next block is the first of a probe."""
        return self.passes_left == PASSES

    def goes_on(self, converged: RitzTriplets, *, full: bool) -> bool:
        """Whether converged triplets call for another pass of a probe, of a new one where none runs.

        Parameters
        ----------
        converged : RitzTriplets
            All triplets wanted.
        full : bool
            The bases span the space: there is nothing left to draw from.
        """
        if self.passes_left > 1:
            self.passes_left -= 1
            return True
        if full or not self._called_for(converged):
            return False
        self.passes_left = PASSES
        return True

    def found_something(self) -> None:
        """End a probe, where one runs, because triplets are open again."""
        self._found_more |= self.passes_left > 0
        self.passes_left = 0

    def _called_for(self, converged: RitzTriplets) -> bool:
        if self._found_more:
            self._found_more = False
            return True
        return not self.passes_left and largest_group(converged) >= self.drawn


def largest_group(triplets: RitzTriplets) -> int:
    """Return how many neighbouring values at most coincide within their residuals."""
    worst = triplets.norms.max(axis=1)
    apart = triplets.values[:-1] - triplets.values[1:] > worst[:-1] + worst[1:]
    return int(np.diff(np.concatenate([[-1], np.flatnonzero(apart), [len(worst) - 1]])).max())
