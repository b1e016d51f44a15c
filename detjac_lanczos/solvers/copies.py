"""A probe for what one column cannot see: that a singular value has copies."""

from detjac_lanczos.solvers.widening import Widening

PASSES = 6
"""Passes that fresh random columns get before the triplets are believed again. Chosen: three each way."""


class CopyProbe:
    """Counts the passes of a probe by a fresh random column, where a search grew from one column alone.

    The Krylov space of one column holds one copy of each singular value, so there is no cluster to tell of others
    (where there is one, blocks widen). A probe that found something calls for another, unless they have widened.

    Attributes
    ----------
    passes_left : int
        Of the probe that runs; 0 where none does.
    """

    def __init__(self) -> None:
        self.passes_left = 0
        self._found_more = False

    @property
    def starts(self) -> bool:
        """Whether the next block is the first of a probe."""
        return self.passes_left == PASSES

    def goes_on(self, widening: Widening, *, full: bool) -> bool:
        """Whether converged triplets call for another pass of a probe, of a new one where none runs.

        Parameters
        ----------
        widening : Widening
            What has been drawn for the search so far.
        full : bool
            The bases span the space: there is nothing left to draw from.
        """
        if self.passes_left > 1:
            self.passes_left -= 1
            return True
        if full or widening.made or not self._called_for(widening.columns):
            return False
        self.passes_left = PASSES
        return True

    def found_something(self) -> None:
        """End a probe, where one runs, because triplets are open again."""
        self._found_more |= self.passes_left > 0
        self.passes_left = 0

    def _called_for(self, columns: int) -> bool:
        if self._found_more:
            self._found_more = False
            return True
        return not self.passes_left and columns == 1
