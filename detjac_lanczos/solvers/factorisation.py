"""Two orthonormal bases with their stored products, and the Ritz triplets that they hold."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from detjac_lanczos.solvers.basis import (
    RowStore,
    complete_block,
    dominant_rows,
    like,
    project_out,
    small_svd,
    svd_with_clean_zeros,
    to_numpy,
)
from detjac_lanczos.solvers.operator import Direction

_NEW = 0.1


@dataclass(frozen=True, eq=False)
class RitzTriplets:
    """Leading Ritz triplets with both residuals, measured from stored products; vectors are rows.

    Attributes
    ----------
    values : ndarray, shape (r,), descending
    left, right : Tensor, shape (r, d_out) and (r, d_in)
    left_products, right_products : Tensor, shape (r, d_in) and (r, d_out)
        Aᵀ u and A v.
    right_residuals, left_residuals : Tensor, shape (r, d_out) and (r, d_in)
        A v - σ u and Aᵀ u - σ v.
    norms : ndarray, shape (r, 2)
        ρ_R = ‖A v - σ u‖ and ρ_L = ‖Aᵀ u - σ v‖.
    """

    values: np.ndarray
    left: Tensor
    right: Tensor
    left_products: Tensor
    right_products: Tensor
    right_residuals: Tensor
    left_residuals: Tensor
    norms: np.ndarray

    def head(self, count: int) -> "RitzTriplets":
        """Return the ``count`` leading ones."""
        return RitzTriplets(*(getattr(self, field.name)[:count] for field in fields(self)))


class Factorisation:
    """Block Golub-Kahan state of one operator A (d_out × d_in).

    ``V`` and ``U`` have orthonormal rows; their products ``AV`` and ``AtU`` are stored as the operator returned them
    (times ``scale``), so that residuals are measured and never inferred from the recurrence. After a forward pass V
    may hold more vectors than U, after a transposed one the opposite: Ritz triplets may be taken after either.

    Source: Golub, Kahan 1965; full reorthogonalisation twice, Parlett, The Symmetric Eigenvalue Problem, 6.9.
    """

    def __init__(
        self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device, room: int = 32, most: int | None = None
    ) -> None:
        d_out, d_in = shape
        self.shape = shape
        self.V, self.AtU = (RowStore(d_in, dtype, device, room, most) for _ in range(2))
        self.U, self.AV = (RowStore(d_out, dtype, device, room, most) for _ in range(2))
        self._projected = np.zeros((32, 32))
        self._made: tuple[int, int] | None = None

    @property
    def projected(self) -> np.ndarray:
        """``Uᵀ A V``, float64 ``(count of U, count of V)``; each entry from the younger vector's product."""
        return self._projected[: self.U.count, : self.V.count]

    @property
    def steps(self) -> int:
        """How many triplets the two bases can hold."""
        return min(self.U.count, self.V.count)

    @property
    def whole(self) -> bool:
        """Whether a basis spans its space: its products are all of the operator."""
        return self.U.count == self.shape[0] or self.V.count == self.shape[1]

    def absorb(self, direction: Direction, block: Tensor, product: Tensor) -> None:
        """Store a block with its product.

        Parameters
        ----------
        direction : Direction
            FORWARD: the block joins V and its product is A applied to it; TRANSPOSED: U and Aᵀ.
        block, product : Tensor
            Rows; (b, d_in) and (b, d_out), or the other way round.
        """
        forward = direction is Direction.FORWARD
        basis, products, opposite = (self.V, self.AV, self.U) if forward else (self.U, self.AtU, self.V)
        start = basis.count
        basis.append(block)
        products.append(product)
        self._reserve()
        if not opposite.count:
            return
        entries = to_numpy(product @ opposite.rows.T)
        if forward:
            self._projected[: opposite.count, start : basis.count] = entries.T
        else:
            self._projected[start : basis.count, : opposite.count] = entries

    def take(self, direction: Direction, rows: Tensor, products: Tensor) -> None:
        """Add rows of any length whose products are known, as far as they are new.

        Combinations of the rows that lie in the basis to nine tenths are left out: what is left of their products
        would be rounding.
        """
        forward = direction is Direction.FORWARD
        basis, stored = (self.V, self.AV) if forward else (self.U, self.AtU)
        rows, products = rows.to(basis.rows.dtype), products.to(basis.rows.dtype)
        for _ in range(2):
            inside = rows @ basis.rows.T
            rows, products = rows - inside @ basis.rows, products - inside @ stored.rows
        mix, strengths, _ = small_svd(to_numpy(rows))
        new = strengths > _NEW
        combine = like((mix[:, new] / strengths[new]).T, rows)
        self.absorb(direction, combine @ rows, combine @ products)

    def deduce(self, threshold: float, generator: torch.Generator) -> None:
        """Where one basis spans its space, have the other hold all that the operator does; that takes no product.

        With V whole, A = (A V) Vᵀ: what A V has outside of U joins U, its products are those of (A V) Vᵀ, and all
        singular values of A are Ritz values. Random directions follow until there are as many as A may have.

        Parameters
        ----------
        threshold : float
            Directions that short are left out.
        generator : torch.Generator
        """
        forward = self.U.count == self.shape[0]
        whole, products, other = (self.U, self.AtU, self.V) if forward else (self.V, self.AV, self.U)
        direction = Direction.FORWARD if forward else Direction.TRANSPOSED
        candidates = self.outside(direction)
        rows = dominant_rows(candidates, candidates.shape[0], threshold)
        count = max(rows.shape[0], min(self.shape) - other.count)
        block = complete_block(rows, other.rows, count, generator)
        self._made = self._made or (self.U.count, self.V.count)
        if block.shape[0]:
            self.absorb(direction, block, (block @ products.rows.T) @ whole.rows)

    def retract(self) -> None:
        """Forget what was deduced: the products left are the operator's."""
        if self._made is not None:
            for store, count in zip((self.U, self.AtU, self.V, self.AV), np.repeat(self._made, 2), strict=True):
                store.cut(int(count))
            self._made = None

    def replace(self, triplets: RitzTriplets, pushed: Tensor, pulled: Tensor) -> None:
        """Hold these Ritz triplets alone, with other products: A v ``(r, d_out)`` and Aᵀ u ``(r, d_in)``."""
        rows = (triplets.left, pulled, triplets.right, pushed)
        for store, block in zip((self.U, self.AtU, self.V, self.AV), rows, strict=True):
            store.cut(0)
            store.append(block)
        self._reserve()
        self._projected[: self.steps, : self.steps] = np.diag(triplets.values)

    def values(self) -> np.ndarray:
        """Return all Ritz values, descending: lower bounds of the singular values of the same index."""
        return small_svd(self.projected)[1]

    def ritz(self, count: int) -> RitzTriplets:
        """Return the leading ``count`` Ritz triplets (fewer where the bases are smaller)."""
        left, values, right = svd_with_clean_zeros(self.projected)
        count = min(count, len(values))
        values = values[:count]
        mix_left, mix_right = like(left[:, :count].T, self.U.rows), like(right[:count], self.V.rows)
        u, atu = mix_left @ self.U.rows, mix_left @ self.AtU.rows
        v, av = mix_right @ self.V.rows, mix_right @ self.AV.rows
        sigma = like(values, u)[:, None]
        right_residuals, left_residuals = av - sigma * u, atu - sigma * v
        norms = torch.stack([torch.linalg.vector_norm(r, dim=1) for r in (right_residuals, left_residuals)], dim=1)
        return RitzTriplets(values, u, v, atu, av, right_residuals, left_residuals, to_numpy(norms))

    @property
    def longest(self) -> float:
        """The length of the longest product; 0 where a side has none."""
        return _longest_row(self.AV.rows, self.AtU.rows) if self.steps else 0.0

    def adjoint_defect(self) -> float:
        """Return max |⟨u, A v⟩ - ⟨Aᵀ u, v⟩| over the stored vectors, relative to the longest product; 0 without any."""
        return adjoint_defect(self.U.rows, self.AtU.rows, self.V.rows, self.AV.rows)

    def defect_of(self, direction: Direction, rows: Tensor, products: Tensor) -> float:
        """Return the same of other rows and their products, with the stored vectors of the other side."""
        if direction is Direction.FORWARD:
            return adjoint_defect(self.U.rows, self.AtU.rows, rows, products)
        return adjoint_defect(rows, products, self.V.rows, self.AV.rows)

    def outside(self, direction: Direction, latest: int | None = None) -> Tensor:
        """Return candidates for the next block of ``direction``: what stored products have outside its basis.

        Parameters
        ----------
        direction : Direction
        latest : int, optional
            Only the last so many products; all by default.
        """
        products, basis = (self.AtU, self.V) if direction is Direction.FORWARD else (self.AV, self.U)
        rows = products.rows if latest is None else products.rows[-latest:]
        return project_out(rows, basis.rows)

    def restart(self, keep: int, ahead: int) -> None:
        """Thick restart: keep the leading Ritz vectors of both sides and the block that is ahead of the other side.

        Bases and stored products are combined alike, so that residuals stay measured. What the larger basis holds
        beyond the smaller one has products outside of it: the residual block, of which the longest directions are kept.
        Residuals of the kept triplets, and with them the directions to go on in, are in the products as before.

        Parameters
        ----------
        keep : int
            Ritz vectors of each side.
        ahead : int
            The most directions of the residual block.

        Source: Baglama, Reichel 2005 (augmented implicitly restarted Lanczos bidiagonalisation), in blocks.
        """
        left, values, right = small_svd(self.projected, full=True)
        keep = min(keep, len(values))
        mix_left, mix_right = left[:, :keep].T, right[:keep]
        if self.V.count > self.U.count:
            mix_right = np.vstack([mix_right, _longest(right[len(values) :], self.AV.rows, ahead)])
        elif self.U.count > self.V.count:
            mix_left = np.vstack([mix_left, _longest(left[:, len(values) :].T, self.AtU.rows, ahead)])
        for store, combine in ((self.U, mix_left), (self.AtU, mix_left), (self.V, mix_right), (self.AV, mix_right)):
            store.mix(like(combine, store.rows))
        self._projected[: self.U.count, : self.V.count] = 0.0
        np.fill_diagonal(self._projected[:keep, :keep], values[:keep])

    def _reserve(self) -> None:
        needed = max(self.U.count, self.V.count)
        size = self._projected.shape[0]
        if needed > size:
            grown = np.zeros((max(needed, 2 * size),) * 2)
            grown[:size, :size] = self._projected
            self._projected = grown


def adjoint_defect(left: Tensor, pulled: Tensor, right: Tensor, pushed: Tensor) -> float:
    """Return max |⟨u, A v⟩ - ⟨Aᵀ u, v⟩| over all pairs, relative to the longest product; 0 where a side has no rows.

    Parameters
    ----------
    left, pulled : Tensor, shape (p, d_out) and (p, d_in)
        u and Aᵀ u.
    right, pushed : Tensor, shape (q, d_in) and (q, d_out)
        v and A v.
    """
    if not len(left) or not len(right):
        return 0.0
    longest = _longest_row(pulled, pushed)
    return float((left @ pushed.T - pulled @ right.T).abs().max()) / longest if longest > 0.0 else 0.0


def _longest_row(*blocks: Tensor) -> float:
    return max(float(torch.linalg.vector_norm(block, dim=1).max()) for block in blocks)


def _longest(combinations: np.ndarray, products: Tensor, count: int) -> np.ndarray:
    """Turn orthonormal combinations so that those with the longest products come first, and return ``count``."""
    mixed = to_numpy(like(combinations, products) @ products)
    turn = small_svd(mixed)[0]
    return np.asarray(turn.T[:count] @ combinations)
