"""Fresh random directions beside a search: followed until a further copy of a singular value shows, or is excluded."""

import math

import numpy as np
import torch
from torch import Tensor

from detjac_lanczos.solvers.basis import (
    dominant_rows,
    like,
    orthonormal_rows,
    project_out,
    random_rows,
    small_svd,
    to_numpy,
)
from detjac_lanczos.solvers.overlap import log_overlap

CARRIED = 0.1
"""Length of a direction outside of the block below which the block has it."""

_CHANCE = 1e-3
_BEYOND = 1.01
"""Of 1, which a copy that F_0 holds as a whole reaches; more than rounding adds."""

_LONGEST = 16
"""Passes, after which a value so little above σ_k is not worth more: seven are usual."""


class Strand:
    """Random rows F_0 outside all that a search knows, followed by F_1, F_2, …: what their products add to it.

    The products take turns between A and Aᵀ. Let s be the value in question, y the right vector of a copy of it that
    the search has no part of, and w_j the components of F_j along y, or along its left vector. What is known has no
    part of y, so

        A F_jᵀ = F_{j+1}ᵀ L_jᵀ + F_{j-1}ᵀ L_{j-1} + what is known    gives    L_j w_{j+1} = s w_j - L_{j-1}ᵀ w_{j-1}:

    w_j = Φ_j w_0, with the Lanczos polynomials of a block at s
    (:func:`~detjac_lanczos.solvers.lanczos_polynomial.largest_root` has those of one vector). As ‖w_j‖ ≤ 1, the copy
    has ‖w_0‖ ≤ 1 / σ_min(Φ_j). Random F_0 have so small a part of it by chance alone, and once that chance is below
    0.1 % the copy is excluded. A copy that exists keeps σ_min(Φ_j) small, and a Ritz value rises to s instead: its open
    residual then has the direction, which goes no second time, and the strand ends when all its directions went over.
    Where some did, they may have taken others' parts along, and what is left excludes nothing.

    All this decides where a search looks. What it claims rests on measured residuals alone.

    Parameters
    ----------
    rows : int
        Of F_0.
    value : float
        s, in the units of the search.
    generator : torch.Generator

    Attributes
    ----------
    sent : int
        Rows of F_j, the last ones of the block that is sent.
    ended : bool
    excluded : bool
        It ended because no further copy of s is there, or none that shows within ``_LONGEST`` passes.
    vanished : bool
        F_0 has no product: all that the operator does is known.
    """

    def __init__(self, rows: int, value: float, generator: torch.Generator) -> None:
        self.value = value
        self.sent = 0
        self.ended = False
        self.excluded = False
        self.vanished = False
        self._count, self._generator = rows, generator
        self._passes = self._dimension = 0
        self._whole = True
        # Φ_{j-1}, Φ_j and L_{j-1}; F_{j+1} until it is sent; F_{j-1} and F_j as they were sent.
        self._before, self._now = np.zeros((rows, rows)), np.eye(rows)
        self._link = np.zeros((rows, rows))
        self._next: Tensor | None = None
        self._latest: Tensor | None = None
        self._current: Tensor | None = None

    def beside(self, block: Tensor, basis: Tensor, most: int) -> Tensor:
        """Return ``block`` with the rows F_j below it, all orthonormal.

        Parameters
        ----------
        block : Tensor, shape (b, d)
            Orthonormal directions of open residuals.
        basis : Tensor, shape (m, d)
            Of the side that the block is to join.
        most : int
            Rows that may be sent.
        """
        following = self._begin(basis) if self._next is None else self._next
        outside = project_out(project_out(following, basis), block)
        rows = dominant_rows(outside, max(most - block.shape[0], 0), CARRIED)
        # F_j = turn · rows: y has the components turn⁺ w_j along the rows sent, and L_{j-1} takes turn on its right.
        turn = to_numpy(outside @ rows.T)
        self._whole &= rows.shape[0] == outside.shape[0]
        self._now, self._link = np.linalg.pinv(turn) @ self._now, self._link @ turn
        self._latest, self._current = self._current, rows
        self.sent = rows.shape[0]
        self.ended = not self.sent
        return torch.cat([block, rows])

    def absorb(self, product: Tensor, basis: Tensor, threshold: float) -> None:
        """Take the products of the rows sent.

        Parameters
        ----------
        product : Tensor, shape (sent, d)
        basis : Tensor, shape (m, d)
            Of the side that the products lie on.
        threshold : float
            Directions that short are rounding: nothing is left on this side.
        """
        self._passes += 1
        self.vanished |= self._passes == 1 and float(torch.linalg.vector_norm(product)) <= threshold
        if self._latest is not None:  # a restart may have taken it out of the basis
            product = product - like(self._link.T, product) @ self._latest
        outside = project_out(product, basis)
        following = dominant_rows(outside, self.sent, threshold)
        link = to_numpy(outside @ following.T)
        after = np.linalg.pinv(link) @ (self.value * self._now - self._link.T @ self._before)
        self._before, self._now, self._link, self._next = self._now, after, link, following
        self.ended = self._passes == _LONGEST or self._chance_is_small(after)
        self.excluded = self.ended and self._whole

    def _chance_is_small(self, polynomial: np.ndarray) -> bool:
        """Whether so small a part of a copy in F_0 has a chance below ``_CHANCE``, or no row is left."""
        rows = len(polynomial)
        if not rows:
            return True
        part = math.exp(log_overlap(self._dimension, _CHANCE, rows))
        return float(small_svd(polynomial)[1][-1]) * part > _BEYOND

    def _begin(self, basis: Tensor) -> Tensor:
        self._dimension = basis.shape[1] - basis.shape[0]
        count = min(self._count, self._dimension)
        self._before, self._now, self._link = (part[:count, :count] for part in (self._before, self._now, self._link))
        return orthonormal_rows(project_out(random_rows(count, basis, self._generator), basis))
