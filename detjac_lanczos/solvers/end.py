"""Whether an operator has come to its end, as far as random vectors tell: said only after a second look."""

import torch
from torch import Tensor

from detjac_lanczos.solvers.basis import dominant_rows, project_out
from detjac_lanczos.solvers.strand import CARRIED


class End:
    """Where products of fresh random rows are too short to tell of a value, what is left of them is sent back.

    A random row p has so small a part of any vector that a value σ which the search lacks may show in ‖A p‖ as σ/√n.
    What A p has outside of the basis, as a row of its own, has a product as long as σ outside of the other basis,
    unless rounding outweighs it.

    Attributes
    ----------
    reached : bool
        Random rows find nothing more.
    row : Tensor, shape (1, d), or None
        Orthonormal to the basis: it goes in the next block, by whose product :meth:`look` decides.
    """

    def __init__(self) -> None:
        self.reached = False
        self.row: Tensor | None = None

    def suspect(self, products: Tensor, basis: Tensor, *, affordable: bool) -> None:
        """Take products of random rows under the floor; without the budget for a second look, nothing follows.

        Parameters
        ----------
        products : Tensor, shape (b, d)
        basis : Tensor, shape (m, d), orthonormal rows
        affordable : bool
            Whether the budget leaves one more column.
        """
        if not self.reached:
            row = dominant_rows(project_out(project_out(products, basis), basis), 1, 0.0)
            self.reached = not len(row) or basis.shape[0] == basis.shape[1]
            self.row = row if affordable and not self.reached else None

    def above(self, block: Tensor) -> Tensor:
        """Return :attr:`row`, and below it what orthonormal rows ``(b, d)`` have beside it, all orthonormal.

        Of a direction that is the row itself, rounding would be left.
        """
        assert self.row is not None
        return torch.cat([self.row, dominant_rows(project_out(block, self.row), block.shape[0], CARRIED)])

    def look(self, product: Tensor, basis: Tensor, floor: float) -> None:
        """Take the product of the block that :attr:`row` was part of, ``(b, d)``, and the basis of that side."""
        self.row = None
        self.reached = float(torch.linalg.vector_norm(project_out(product, basis))) <= floor
