"""One operator, or a list of independent ones, behind the batch protocol."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from detjac_lanczos.errors import InputError
from detjac_lanczos.solvers.chunks import turns
from detjac_lanczos.solvers.operator import LinearOperator, OperatorBatch, as_operator, require_declared

ROWS_OF_A_SWEEP = float(1 << 16)
"""Row-sweeps that keep any machine busy; the rows of one stream, in float32 at d = 1,024, are then 256 MiB."""

_BATCH = ("shapes", "dtype", "device", "matmat", "rmatmat", "rmatmat_shared", "cost", "shared_cost")
_EMPTY = "an empty batch has nothing to solve: pass at least one operator"


class IndependentBatch:
    """Operators that share nothing: each block is its own product.

    A column costs what the operator's own ``cost()`` says, in row-sweeps, and 1 where it has none.
    """

    def __init__(self, operators: Sequence[LinearOperator]) -> None:
        if not operators:
            raise InputError(_EMPTY)
        first = operators[0]
        for index, operator in enumerate(operators):
            if operator.dtype != first.dtype or torch.device(operator.device) != torch.device(first.device):
                raise InputError(
                    f"operator {index} is {operator.dtype} on {operator.device} and operator 0 is {first.dtype} on "
                    f"{first.device}: one batch needs one dtype and one device"
                )
        self.operators = tuple(operators)
        self.shapes = [(int(op.shape[0]), int(op.shape[1])) for op in operators]
        self.dtype = first.dtype
        self.device = torch.device(first.device)

    def matmat(self, blocks: Sequence[tuple[int, Tensor]], /) -> list[Tensor]:
        """Map ``[(operator, (d_in, b_i))]`` to ``[(d_out, b_i)]``."""
        return [_own(self.operators[index].matmat(block)) for index, block in blocks]

    def rmatmat(self, blocks: Sequence[tuple[int, Tensor]], /) -> list[Tensor]:
        """Map ``[(operator, (d_out, b_i))]`` to ``[(d_in, b_i)]``."""
        return [_own(self.operators[index].rmatmat(block)) for index, block in blocks]

    def rmatmat_shared(self, Y: Tensor, /) -> list[Tensor]:
        """Map one cotangent block ``(d_out, b)`` by every transpose; all operators need the same ``d_out``."""
        return [_own(operator.rmatmat(Y.clone())) for operator in self.operators]

    def cost(self, index: int, /) -> float:
        """Row-sweeps of one column of one operator."""
        cost = getattr(self.operators[index], "cost", None)
        return float(cost()) if callable(cost) else 1.0

    def shared_cost(self) -> float:
        """Row-sweeps of one shared column: nothing is saved, so the sum of all."""
        return sum(self.cost(index) for index in range(len(self.operators)))


def _own(product: Tensor) -> Tensor:
    """Return a copy: operators may write every product into one buffer of theirs. What is no tensor is named later."""
    return product.clone() if isinstance(product, Tensor) else product


class Subset:
    """Some operators of a batch, as a batch: they go on sharing its sweeps, so many rows in each.

    Parameters
    ----------
    batch : OperatorBatch
    indices : sequence of int
    rows : float
        Row-sweeps that one sweep may take, shared columns apart: a pass of more is made of several, so that it needs no
        more memory. One operator's block is never parted.
    """

    def __init__(self, batch: OperatorBatch, indices: Sequence[int], rows: float = ROWS_OF_A_SWEEP) -> None:
        self.batch, self.indices, self.rows = batch, list(indices), rows
        self.shapes = [batch.shapes[index] for index in self.indices]
        self.dtype, self.device = batch.dtype, batch.device

    def matmat(self, blocks: Sequence[tuple[int, Tensor]], /) -> list[Tensor]:
        """Map ``[(operator, (d_in, b_i))]`` to ``[(d_out, b_i)]``."""
        return [product for part in self._parts(blocks) for product in self.batch.matmat(part)]

    def rmatmat(self, blocks: Sequence[tuple[int, Tensor]], /) -> list[Tensor]:
        """Map ``[(operator, (d_out, b_i))]`` to ``[(d_in, b_i)]``."""
        return [product for part in self._parts(blocks) for product in self.batch.rmatmat(part)]

    def _parts(self, blocks: Sequence[tuple[int, Tensor]]) -> list[list[tuple[int, Tensor]]]:
        costs = [block.shape[1] * self.cost(index) for index, block in blocks]
        sent = [(self.indices[index], block) for index, block in blocks]
        return [[sent[place] for place in turn] for turn in turns(costs, self.rows)]

    def rmatmat_shared(self, Y: Tensor, /) -> list[Tensor]:
        """Map one cotangent block ``(d_out, b)`` by every transpose of the whole batch, and keep those asked for."""
        products = self.batch.rmatmat_shared(Y)
        return [products[index] for index in self.indices]

    def cost(self, index: int, /) -> float:
        """Row-sweeps of one column of one operator."""
        return self.batch.cost(self.indices[index])

    def shared_cost(self) -> float:
        """Row-sweeps of one shared column, that of the whole batch."""
        return self.batch.shared_cost()


def as_batch(A: Any) -> OperatorBatch:
    """Return a batch: ``A`` itself, a list of operators, or a single operator as a batch of one."""
    if torch._C._are_functorch_transforms_active():  # torch has no public name for it
        raise InputError("solvers run inside no transform of torch.func (grad, jvp, vmap): solve before it, or after")
    if hasattr(A, "shapes") and hasattr(A, "rmatmat_shared"):
        missing = [name for name in _BATCH if not hasattr(A, name)]
        if missing:
            raise InputError(f"{type(A).__name__} is no batch of operators: give it {', '.join(missing)}")
        require_declared(A.shapes, A.dtype, A.device)
        if not len(A.shapes):
            raise InputError(_EMPTY)
        return cast(OperatorBatch, A)
    if isinstance(A, list | tuple):
        return IndependentBatch([as_operator(item) for item in A])
    return IndependentBatch([as_operator(A)])
