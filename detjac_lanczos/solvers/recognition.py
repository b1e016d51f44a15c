"""Whether a journal is of the operators that it is to serve."""

from collections.abc import Sequence

import torch
from torch import Tensor

from detjac_lanczos.errors import InputError, OperatorError
from detjac_lanczos.solvers.operator import Direction, OperatorBatch
from detjac_lanczos.solvers.product_fault import product_fault
from detjac_lanczos.solvers.rounding import agree, safe_scale, working_dtype


class Recognition:
    """Holds products from a journal against the operators of a batch, at one uncounted column each.

    A random combination of the columns of an operator's first pass must give that combination of their products.
    """

    def __init__(self, batch: OperatorBatch) -> None:
        self.batch = batch
        self._recognised: set[int] = set()

    def hold(self, direction: Direction, blocks: Sequence[tuple[int, Tensor]], stored: Sequence[Tensor]) -> None:
        """Test the operators of a pass that have not been.

        Parameters
        ----------
        direction : Direction
        blocks : sequence of (operator, columns), columns of shape (d_in, b_i) forward, (d_out, b_i) transposed
        stored : sequence of Tensor, shape (d_out, b_i) forward, (d_in, b_i) transposed
            Their products, from the journal.

        Raises
        ------
        InputError
            The journal is of another operator.
        OperatorError
            A product has the wrong shape, dtype or device.
        """
        unknown = [at for at, (index, _) in enumerate(blocks) if index not in self._recognised]
        if not unknown:
            return
        self._recognised.update(index for index, _ in blocks)
        columns, mixtures = [], []
        for at in unknown:
            index, block = blocks[at]
            mixture = torch.randn(block.shape[1], 1, generator=torch.Generator().manual_seed(0), device="cpu")
            mixtures.append((mixture / mixture.norm()).to(block.device, torch.float64))
            columns.append((index, (block.double() @ mixtures[-1]).to(block)))
        again = list((self.batch.matmat if direction is Direction.FORWARD else self.batch.rmatmat)(columns))
        if len(again) != len(unknown):
            raise OperatorError(f"a {direction.value} pass of {len(unknown)} blocks returned {len(again)} of them")
        for at, product, mixture in zip(unknown, again, mixtures, strict=True):
            index = blocks[at][0]
            if not self._same(index, self._checked(index, direction, product), stored[at].double() * mixture.T):
                raise InputError(
                    f"the checkpoint is of another operator: a first product of operator {index} does not come out "
                    "again; give a new folder"
                )

    def _checked(self, index: int, direction: Direction, product: Tensor) -> Tensor:
        d_out, d_in = self.batch.shapes[index]
        shape = (d_out if direction is Direction.FORWARD else d_in, 1)
        if fault := product_fault(product, shape, self.batch.dtype, torch.device(self.batch.device)):
            raise OperatorError(f"operator {index}: the product of a {direction.value} pass is {fault}")
        return product.to(working_dtype(self.batch.dtype)).double()

    def _same(self, index: int, product: Tensor, parts: Tensor) -> bool:
        """Whether a product is the sum of columns, and not finite in the same rows where that is not finite."""
        expected = parts.sum(dim=1, keepdim=True)
        finite = torch.isfinite(expected)
        if not finite.all():
            return product.isfinite().equal(finite)
        scale, rows = safe_scale(parts), max(self.batch.shapes[index])
        return agree(product * scale, expected * scale, self.batch.dtype, rows, scale, parts * scale)
