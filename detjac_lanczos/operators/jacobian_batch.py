"""Jacobians of several tokens side by side, in lockstep."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from detjac_lanczos.errors import InputError
from detjac_lanczos.frozen.layout import Segment
from detjac_lanczos.frozen.shared import Shared
from detjac_lanczos.operators.blocks import check_block
from detjac_lanczos.operators.differentiable import Products, products
from detjac_lanczos.operators.jacobian import Jacobian
from detjac_lanczos.operators.one_sweep import products_of, shared_products_of, sum_of_products, transposed_products_of


class JacobianBatch(Shared):
    """Many Jacobians of one network, source and target, swept together: the solver's batch protocol.

    Its products are differentiable, as those of each operator are.

    Parameters
    ----------
    operators : sequence of Jacobian
        One or more, frozen or ordinary ones.

    Raises
    ------
    InputError
        If there are none, or they are of different networks, sources or targets, or frozen and ordinary ones.
    """

    def __init__(self, operators: Sequence[Jacobian]) -> None:
        self.operators = list(operators)
        if not self.operators:
            raise InputError("a batch is of one Jacobian or more; got none")
        first = self.operators[0]
        if not all(map(first._goes_with, self.operators)):
            raise InputError(
                "a batch sweeps one map: operators of one network, source and target, all frozen or all ordinary; "
                "make a batch of each"
            )
        self.network, self.sweeps = first.network, first.sweeps
        self.dtype, self.device = first.dtype, first.device

    def __len__(self) -> int:
        """Return the number of operators."""
        return len(self.operators)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(d_out, d_in) of every operator."""
        return [operator.shape for operator in self.operators]

    def part(self, indices: Sequence[int]) -> JacobianBatch:
        """Return some operators as a batch of their own, whose shared sweeps leave the others out.

        Parameters
        ----------
        indices : sequence of int
            One or more.

        Returns
        -------
        JacobianBatch
        """
        return JacobianBatch([self.operators[index] for index in indices])

    def matmat(self, blocks: Sequence[tuple[int, Tensor]]) -> list[Tensor]:
        """Return A_i X_i for every (i, X_i), in one sweep: (d_in, b_i) to (d_out, b_i).

        Raises
        ------
        OperatorError
            If a block has another shape, dtype or device, or is not finite.
        """
        return self._checked("matmat", 1, self._matmat, self._rmatmat, blocks) if blocks else []

    def rmatmat(self, blocks: Sequence[tuple[int, Tensor]]) -> list[Tensor]:
        """Return A_iᵀ Y_i for every (i, Y_i), in one sweep: (d_out, b_i) to (d_in, b_i).

        Raises
        ------
        OperatorError
            If a block has another shape, dtype or device, or is not finite.
        """
        return self._checked("rmatmat", 0, self._rmatmat, self._matmat, blocks) if blocks else []

    def rmatmat_shared(self, Y: Tensor) -> list[Tensor]:
        """Return A_iᵀ Y for every operator: (d_out, b) to one (d_in, b) each.

        Operators of one prompt and output position share one segment: n rows a column instead of one segment each.

        Raises
        ------
        OperatorError
            If Y has another shape, dtype or device, or is not finite.
        """
        check_block(self, Y, self.sweeps.d_out, "rmatmat_shared")
        every = range(len(self))
        shared = partial(self._rmatmat_shared, every)
        return list(products(["rmatmat_shared"], shared, shared, partial(self._matmat_sum, every), Y))

    def matmat_sum(self, blocks: Sequence[tuple[int, Tensor]]) -> Tensor:
        """Return Σ A_i X_i over every (i, X_i), all of one width: (d_in, b) each to one (d_out, b).

        Operators of one prompt and output position share one segment, as in `rmatmat_shared`: each X_i enters at its
        token.

        Raises
        ------
        InputError
            If there are no blocks.
        OperatorError
            As in `matmat`, or if the widths differ.
        """
        if not blocks:
            raise InputError("matmat_sum was given no blocks; pass at least one (operator, block)")
        return self._checked("matmat_sum", 1, self._matmat_sum, self._rmatmat_shared, blocks)[0]

    def cost(self, index: int) -> float:
        """Row-sweeps of one column of operator ``index``, either way."""
        return self.operators[index].cost()

    def shared_cost(self) -> float:
        """Row-sweeps of one shared cotangent column, and of one column of `matmat_sum`."""
        return sum(self.sweeps.cost(segment) for segment in self._ends)

    @property
    def _ends(self) -> list[Segment]:
        """Every prompt and output position once, with all tokens from the first that an operator of it needs."""
        starts: dict[tuple[int, int], int] = {}
        for operator in self.operators:
            end = (operator.prompt, operator.position)
            starts[end] = min(starts.get(end, operator.position), operator.segment.start)
        return [Segment(prompt, start, position, 1, joint=True) for (prompt, position), start in starts.items()]

    def _checked(
        self, name: str, side: int, value: Products, transposed: Products, blocks: Sequence[tuple[int, Tensor]]
    ) -> list[Tensor]:
        """Return the products with blocks that have as many rows as the shapes of their operators have on a side."""
        indices = [index for index, _ in blocks]
        names = [f"{name} of operator {index}" for index in indices]
        for (index, block), named in zip(blocks, names, strict=True):
            check_block(self, block, self.operators[index].shape[side], named)
        value = partial(value, indices)
        return list(products(names, value, value, partial(transposed, indices), *(block for _, block in blocks)))

    def _matmat(self, indices: Sequence[int], *blocks: Tensor) -> list[Tensor]:
        return products_of(self.sweeps, self._at(indices), blocks)

    def _rmatmat(self, indices: Sequence[int], *blocks: Tensor) -> list[Tensor]:
        return transposed_products_of(self.sweeps, self._at(indices), blocks)

    def _rmatmat_shared(self, indices: Sequence[int], Y: Tensor) -> list[Tensor]:
        return shared_products_of(self.sweeps, self._ends, self._at(indices), Y)

    def _matmat_sum(self, indices: Sequence[int], *blocks: Tensor) -> list[Tensor]:
        return [sum_of_products(self.sweeps, self._ends, self._at(indices), blocks)]

    def _at(self, indices: Sequence[int]) -> list[Jacobian]:
        return [self.operators[index] for index in indices]
