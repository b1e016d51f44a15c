"""Blocks that widen where a cluster of values is as large as they are wide: further copies of it may exist unseen."""

import numpy as np
import torch
from torch import Tensor

from detjac_lanczos.solvers.clusters import clusters
from detjac_lanczos.solvers.factorisation import RitzTriplets
from detjac_lanczos.solvers.strand import Strand

MOST = 2
"""Fresh rows of a strand. On 1/√j with up to ten equal values, widths 1, 2 and 4, three take 1 % fewer passes and 2 %
more columns, one takes 5 % more passes and 2 % fewer columns."""


class Widening:
    """Decides when a search gets a strand, and has it go beside the blocks.

    A block Krylov space holds at most as many copies of a multiple singular value as columns it grew from (in exact
    arithmetic), and what of them was not random may hold none. So where that many converged values coincide within
    their residuals, above the last value wanted (below it a copy changes nothing), a :class:`Strand` of fresh rows
    makes the block one wider than the cluster, with ``MOST`` rows at most. Once the copies it revealed have converged,
    another strand is sent, until one rules out any more.

    Attributes
    ----------
    columns : int
        That the blocks grew from, given or random, those of strands apart.
    drawn : int
        Random ones among them that every pass has followed. What was given may have no part in a copy.
    strand : Strand or None
        The one that runs.
    made : list of (int, int)
        Passes in which strands began, and their rows.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.columns = self.drawn = 0
        self.strand: Strand | None = None
        self.made: list[tuple[int, int]] = []
        self._generator = generator
        self._excluded, self._members = np.inf, 0
        self._size = self._awaited = self._pass = 0

    def draw(self, rows: int, given: int = 0) -> None:
        """Count rows that join the search, and that every pass follows: random ones, and ``given`` ones."""
        self.columns += rows + given
        self.drawn += rows

    def fill(self, rows: int) -> None:
        """Count random rows that fill up a block: triplets do not hold them yet, so that they rule out no copy."""
        self.columns += rows

    def follow(self, columns: int) -> None:
        """Count no more random columns than a pass follows: directions that it sends, and triplets that need none.

        Where few triplets are wanted yet (``threshold``), it follows fewer than the search began with.
        """
        self.drawn = min(self.drawn, columns)

    def beside(self, block: Tensor, basis: Tensor, most: int) -> Tensor:
        """Return ``block`` with the rows of the strand below it, where one runs and at most ``most`` rows in all."""
        if self.strand is None:
            return block
        new = not self.strand.sent
        block = self.strand.beside(block, basis, most)
        if new and self.strand.sent:
            self.made.append((self._pass, self.strand.sent))
        if self.strand.ended:
            self.strand = None
        return block

    def absorb(self, product: Tensor, basis: Tensor, threshold: float) -> bool:
        """Take the strand's part of a product on the side of ``basis``; True where its fresh rows have no product."""
        strand = self.strand
        if strand is None:
            return False
        strand.absorb(product[product.shape[0] - strand.sent :], basis, threshold)
        if strand.ended:
            self.strand = None
            if strand.excluded:
                self._excluded, self._members, self._awaited = strand.value, self._size, 0
        return strand.vanished

    def goes_on(self, triplets: RitzTriplets, tolerated: np.ndarray, *, passes: int, full: bool) -> bool:
        """Whether a strand runs, a new one where the converged triplets call for it.

        Parameters
        ----------
        triplets : RitzTriplets
            All wanted.
        tolerated : ndarray
            Residuals with which they count as converged.
        passes : int
            Of the search so far.
        full : bool
            A basis spans its space: there is nothing left to draw from.
        """
        if self.strand is not None or full:
            return self.strand is not None
        converged = triplets.norms.max(axis=1) <= tolerated
        self._size, lowest = self._largest(triplets, converged)
        known = lowest >= self._excluded and self._size <= self._members
        if known or (self._size < self._awaited and not converged.all()):
            return False
        rows = min(max(self._size + 1 - int((~converged).sum()), 1), MOST)
        self.strand, self._awaited = Strand(rows, lowest, self._generator), self._size + rows
        self._pass = passes + 1
        return True

    def _largest(self, triplets: RitzTriplets, converged: np.ndarray) -> tuple[int, float]:
        """Return the size of the largest cluster that may have further copies, and the lowest value of them all."""
        values, worst = triplets.values[converged].tolist(), triplets.norms.max(axis=1)[converged].tolist()
        size, lowest = 0, np.inf
        for group in clusters(values, worst):
            if len(group) >= max(self.drawn, 2):
                low = values[group[-1]] - worst[group[-1]]
                if low > triplets.values[-1]:
                    size, lowest = max(size, len(group)), min(lowest, low)
        return size, lowest
