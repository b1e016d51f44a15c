"""Jacobians of several tokens side by side, in lockstep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, overload

from torch import Tensor

from detjac_lanczos.errors import InputError, OperatorError
from detjac_lanczos.frozen.indices import whole_number
from detjac_lanczos.frozen.layout import Segment
from detjac_lanczos.frozen.shared import Shared
from detjac_lanczos.operators.blocks import check_block
from detjac_lanczos.operators.differentiable import Products, products
from detjac_lanczos.operators.jacobian import Jacobian
from detjac_lanczos.operators.one_sweep import products_of, shared_products_of, sum_of_products, transposed_products_of


class JacobianBatch(Shared, Sequence[Jacobian]):
    """Many Jacobians of one network, source and target, swept together: the solver's batch protocol.

    A sequence of them too: ``for J in batch``, ``batch[-1]``, and ``batch[2:5]`` for a batch of some. Its products are
    differentiable, as those of each operator are.

    Parameters
    ----------
    operators : iterable of Jacobian
        One or more, frozen or ordinary ones.

    Raises
    ------
    InputError
        If there are none, or they are of different networks, sources or targets, or frozen and ordinary ones.
    """

    def __init__(self, operators: Iterable[Jacobian]) -> None:
        if not isinstance(operators, Iterable):
            raise InputError(f"a batch is of a list of Jacobians; got {type(operators).__name__}")
        self.operators = list(operators)
        if not self.operators:
            raise InputError("a batch is of one Jacobian or more; got none")
        for operator in self.operators:
            if not isinstance(operator, Jacobian):
                raise InputError(
                    f"a batch is of Jacobians as `network.jacobian` gives them; got a {type(operator).__name__}: "
                    "svd_batch takes a list of any operators"
                )
        first = self.operators[0]
        if not all(map(first._goes_with, self.operators)):
            raise InputError(
                "a batch sweeps one map: operators of one network, source and target, all frozen or all ordinary; "
                "make a batch of each"
            )
        self.network, self.sweeps = first.network, first.sweeps
        self.dtype, self.device = first.dtype, first.device

    @property
    def _elsewhere(self) -> str:
        return self.network._elsewhere

    def __len__(self) -> int:
        """Return the number of operators."""
        return len(self.operators)

    def __iter__(self) -> Iterator[Jacobian]:
        """Go through the operators."""
        return iter(self.operators)

    @overload
    def __getitem__(self, index: int) -> Jacobian: ...

    @overload
    def __getitem__(self, index: slice) -> JacobianBatch: ...

    def __getitem__(self, index: int | slice) -> Jacobian | JacobianBatch:
        """Return one operator, counted from the end if negative, or a slice of them as a batch of its own.

        Raises
        ------
        InputError
            If there is no such operator, or a slice holds none.
        """
        if isinstance(index, slice):
            return JacobianBatch(self.operators[index])
        place = whole_number(index)
        if place is None or not -len(self) <= place < len(self):
            raise self._no_such(index)
        return self.operators[place]

    def __repr__(self) -> str:
        """One line that says how many operators there are, of what shape, and of which map."""
        first, shapes = self.operators[0], sorted(set(self.shapes))
        shape = f"shape={shapes[0]}" if len(shapes) == 1 else f"shapes={shapes[0]} to {shapes[-1]}"
        return f"{type(self).__name__}({len(self)} × {type(first).__name__}, {shape}, {first._map_in_words})"

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(d_out, d_in) of every operator."""
        return [operator.shape for operator in self.operators]

    def part(self, indices: Iterable[int]) -> JacobianBatch:
        """Return some operators as a batch of their own, whose shared sweeps leave the others out.

        Parameters
        ----------
        indices : iterable of int
            One or more, from 0.

        Returns
        -------
        JacobianBatch

        Raises
        ------
        InputError
            If there are none, or an operator does not exist.
        """
        if not isinstance(indices, Iterable):
            raise InputError(f"part takes a list of operators' numbers; got {type(indices).__name__}")
        return JacobianBatch([self.operators[self._known(index)] for index in indices])

    def matmat(self, blocks: Sequence[tuple[int, Tensor]]) -> list[Tensor]:
        """Return A_i X_i for every (i, X_i), in one sweep: (d_in, b_i) to (d_out, b_i).

        Raises
        ------
        InputError
            If an operator does not exist; they count from 0.
        OperatorError
            If there are other things than pairs, or a block has another shape, dtype or device, or is not finite.
        """
        return self._checked("matmat", 1, self._matmat, self._rmatmat, self._pairs("matmat", blocks))

    def rmatmat(self, blocks: Sequence[tuple[int, Tensor]]) -> list[Tensor]:
        """Return A_iᵀ Y_i for every (i, Y_i), in one sweep: (d_out, b_i) to (d_in, b_i).

        Raises
        ------
        InputError
            If an operator does not exist; they count from 0.
        OperatorError
            If there are other things than pairs, or a block has another shape, dtype or device, or is not finite.
        """
        return self._checked("rmatmat", 0, self._rmatmat, self._matmat, self._pairs("rmatmat", blocks))

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
            If there are no blocks, or an operator does not exist.
        OperatorError
            As in `matmat`, or if the widths differ.
        """
        pairs = self._pairs("matmat_sum", blocks)
        if not pairs:
            raise InputError("matmat_sum was given no blocks; pass at least one (operator, block)")
        return self._checked("matmat_sum", 1, self._matmat_sum, self._rmatmat_shared, pairs)[0]

    def cost(self, index: int) -> float:
        """Row-sweeps of one column of operator ``index``, either way.

        Raises
        ------
        InputError
            If there is no such operator.
        """
        return self.operators[self._known(index)].cost()

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

    def _known(self, index: Any) -> int:
        """Return the number of an operator, from 0; refuse what is none."""
        found = whole_number(index)
        if found is None or not 0 <= found < len(self):
            raise self._no_such(index)
        return found

    def _no_such(self, index: Any) -> InputError:
        return InputError(f"operator {index!r} does not exist; this batch has operators 0..{len(self) - 1}")

    def _pairs(self, name: str, blocks: Any) -> list[tuple[int, Tensor]]:
        """Return the (operator, block) pairs that products are asked of; refuse what are none."""
        if isinstance(blocks, Tensor) or not isinstance(blocks, Iterable):
            raise OperatorError(f"{name} takes a list of (operator, block) pairs; got {type(blocks).__name__}")
        pairs = []
        for pair in blocks:
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                got = type(pair).__name__ + (f" of {len(pair)}" if isinstance(pair, tuple | list) else "")
                raise OperatorError(f"{name} takes a list of (operator, block) pairs; got {got} among them")
            pairs.append((self._known(pair[0]), pair[1]))
        return pairs

    def _checked(
        self, name: str, side: int, value: Products, transposed: Products, blocks: Sequence[tuple[int, Tensor]]
    ) -> list[Tensor]:
        """Return the products with blocks that have as many rows as the shapes of their operators have on a side."""
        if not blocks:
            return []
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
