"""A fresh random vector sent through an operator from which known triplets are taken away."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detjac_lanczos.solvers.basis import (
    RowStore,
    orthonormality_loss,
    project_out,
    random_rows,
    spectral_norm,
    to_numpy,
)
from detjac_lanczos.solvers.lanczos_polynomial import largest_ritz_value, largest_root
from detjac_lanczos.solvers.operator import Direction
from detjac_lanczos.solvers.overlap import log_overlap
from detjac_lanczos.solvers.rounding import rounding_of
from detjac_lanczos.solvers.streams import Stream

_FIRST_SHARE = 0.9


@dataclass(frozen=True, eq=False)
class Deflation:
    """Triplets that a probe is kept away from, float64; vectors are rows.

    Attributes
    ----------
    values : ndarray, shape (p,), descending
    left, right : Tensor, shape (p, d_out) and (p, d_in)
    right_gram, left_gram : ndarray, shape (p, p)
        R_Rᵀ R_R and R_Lᵀ R_L of the residuals A V - U S and Aᵀ U - V S.
    defect : float
        ‖Uᵀ U - I‖₂ + ‖Vᵀ V - I‖₂ + ‖Uᵀ (A V) - (Aᵀ U)ᵀ V‖₂ / σ_1.
    """

    values: np.ndarray
    left: Tensor
    right: Tensor
    right_gram: np.ndarray
    left_gram: np.ndarray
    defect: float

    @classmethod
    def of(cls, values: np.ndarray, left: Tensor, right: Tensor, pushed: Tensor, pulled: Tensor) -> "Deflation":
        """Measure triplets, given as rows, by their products A v ``(p, d_out)`` and Aᵀ u ``(p, d_in)``."""
        left, right, pushed, pulled = (rows.to(torch.float64) for rows in (left, right, pushed, pulled))
        sigma = torch.from_numpy(values).to(left.device)[:, None]
        right_residuals, left_residuals = pushed - sigma * left, pulled - sigma * right
        adjoint = spectral_norm(left @ pushed.T - pulled @ right.T)
        return cls(
            values,
            left,
            right,
            to_numpy(right_residuals @ right_residuals.T),
            to_numpy(left_residuals @ left_residuals.T),
            orthonormality_loss(left)
            + orthonormality_loss(right)
            + (adjoint / float(values[0]) if adjoint > 0.0 else 0.0),
        )

    @property
    def count(self) -> int:
        """How many triplets are taken away."""
        return len(self.values)


def share_of(delta: float, number: int) -> float:
    """Return the part of δ that claim ``number`` (0, 1, …) may spend: 0.9 δ, 0.09 δ, … , together at most δ.

    A claim that is made after another failed, or from one more random vector, is a further chance to be wrong.
    """
    return _FIRST_SHARE * (1.0 - _FIRST_SHARE) ** number * delta


class Probe:
    """Golub-Kahan steps on C = (I - U Uᵀ) A (I - V Vᵀ) from random vectors of a stream of their own.

    Steps begin on the side of fewer dimensions. Where the Krylov space of a vector is exhausted (a coefficient no
    larger than rounding), another independent vector may follow; p vectors bound ‖C‖₂ by the largest of their bounds at
    level δ^(1/p) each, which is wrong only if all of them are.

    Rounding of a product moves ψ_j of `largest_root` by about ε σ_1(A): it is taken for independent of the last digits
    of ⟨y_1, v⟩, whose density is flat, so that it changes no probability; a coefficient is never taken to be smaller
    than what rounding can do. What it moves τ by is added by the caller as the floor.

    Parameters
    ----------
    deflation : Deflation
    shape : (int, int)
    eps : float
        Precision of the operator.
    seed : int
    number : int
        Of the claim: the stream depends on it and on the seed alone.

    Attributes
    ----------
    steps : list of int
        Products of each vector so far.
    row : Tensor or None, shape (1, d_in) or (1, d_out)
        What to send next, in ``direction``; None where the vector is exhausted.
    """

    def __init__(self, deflation: Deflation, shape: tuple[int, int], *, eps: float, seed: int, number: int) -> None:
        self.deflation = deflation
        self.shape = shape
        self.seed = seed
        self.number = number
        self.dimension = min(shape) - deflation.count
        self.start = Direction.FORWARD if shape[1] <= shape[0] else Direction.TRANSPOSED
        self.direction = self.start
        self._threshold = rounding_of(eps, float(deflation.values[0]))
        self._generator = Stream.COMPLETENESS.generator(seed, number)
        self._coefficients: list[list[float]] = []
        self.row: Tensor | None = None
        self.draw()

    @property
    def steps(self) -> list[int]:
        """Products of each vector so far."""
        return [len(coefficients) for coefficients in self._coefficients]

    @property
    def coefficients(self) -> list[float]:
        """Coefficients of the latest vector."""
        return self._coefficients[-1]

    @property
    def seen(self) -> float:
        """The largest singular value of C on the spaces of the vectors: a lower bound of ‖C‖₂."""
        return max(largest_ritz_value(coefficients) for coefficients in self._coefficients)

    @property
    def held(self) -> float:
        """The largest singular value of C on the vectors whose products are known: what a search would take over."""
        return largest_ritz_value(self.coefficients[:-1])

    def draw(self) -> None:
        """Begin with a new random vector; none is needed where nothing is left to deflate."""
        d_out, d_in = self.shape
        device = self.deflation.left.device
        self._coefficients.append([])
        self.sent = {
            Direction.FORWARD: RowStore(d_in, torch.float64, device),
            Direction.TRANSPOSED: RowStore(d_out, torch.float64, device),
        }
        self.returned = {
            Direction.FORWARD: RowStore(d_out, torch.float64, device),
            Direction.TRANSPOSED: RowStore(d_in, torch.float64, device),
        }
        self.direction = self.start
        if self.dimension > 0:
            drawn = random_rows(1, self.sent[self.start].rows, self._generator)
            drawn = self._outside(self.start, drawn)
            self.row = drawn / drawn.norm()

    def log_gamma(self, delta: float) -> float:
        """Return ln γ at the level that each of the vectors has."""
        vectors = len(self._coefficients)
        share = share_of(delta, self.number + vectors - 1)
        return log_overlap(self.dimension, share ** (1.0 / vectors))

    def absorb(self, product: Tensor) -> None:
        """Take the product ``(1, d)`` of ``row`` and make the next one."""
        assert self.row is not None
        self.sent[self.direction].append(self.row)
        self.returned[self.direction].append(product)
        self.direction = self.direction.other
        rest = self._outside(self.direction, product)
        length = float(rest.norm())
        self.coefficients.append(max(length, self._threshold))
        self.row = rest / length if length > self._threshold else None

    def tau(self, delta: float) -> float:
        """Return the bound of ‖C‖₂ that holds with probability 1 - δ, rounding apart."""
        if self.dimension == 0:
            return 0.0
        log_gamma = self.log_gamma(delta)
        roots = (largest_root(coefficients, log_gamma) for coefficients in self._coefficients if coefficients)
        return max(self.seen, *roots)

    def _outside(self, direction: Direction, row: Tensor) -> Tensor:
        """Project twice out of the triplets and out of the vectors already on the side of ``direction``."""
        known = self.deflation.right if direction is Direction.FORWARD else self.deflation.left
        for _ in range(2):
            row = project_out(project_out(row, known), self.sent[direction].rows)
        return row
