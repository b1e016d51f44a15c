"""One operator, or a list of independent ones, behind the batch protocol."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from detjac_lanczos.errors import InputError
from detjac_lanczos.solvers.operator import LinearOperator, OperatorBatch, as_operator, require_real


class IndependentBatch:
    """Operators that share nothing: each block is its own product.

    A column costs what the operator's own ``cost()`` says, in row-sweeps, and 1 where it has none.
    """

    def __init__(self, operators: Sequence[LinearOperator]) -> None:
        if not operators:
            raise InputError("an empty batch has nothing to solve: pass at least one operator")
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
    """Some operators of a batch, as a batch: they go on sharing its sweeps."""

    def __init__(self, batch: OperatorBatch, indices: Sequence[int]) -> None:
        self.batch, self.indices = batch, list(indices)
        self.shapes = [batch.shapes[index] for index in self.indices]
        self.dtype, self.device = batch.dtype, batch.device

    def matmat(self, blocks: Sequence[tuple[int, Tensor]], /) -> list[Tensor]:
        """Map ``[(operator, (d_in, b_i))]`` to ``[(d_out, b_i)]``."""
        return self.batch.matmat([(self.indices[index], block) for index, block in blocks])

    def rmatmat(self, blocks: Sequence[tuple[int, Tensor]], /) -> list[Tensor]:
        """Map ``[(operator, (d_out, b_i))]`` to ``[(d_in, b_i)]``."""
        return self.batch.rmatmat([(self.indices[index], block) for index, block in blocks])

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
    if hasattr(A, "shapes") and hasattr(A, "rmatmat_shared"):
        require_real(A.dtype)
        return cast(OperatorBatch, A)
    if isinstance(A, list | tuple):
        return IndependentBatch([as_operator(item) for item in A])
    return IndependentBatch([as_operator(A)])
