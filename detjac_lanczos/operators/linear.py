"""What every Jacobian here can do beyond products: its transpose, its dense matrix, its scipy face."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from detjac_lanczos.frozen.precision import in_own_precision
from detjac_lanczos.frozen.shared import Shared
from detjac_lanczos.operators.blocks import check_block
from detjac_lanczos.operators.differentiable import product

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator as ScipyOperator

_DENSE_CHUNK = 256


class MatrixFree(Shared, ABC):
    """A linear operator given by products with columns, which autograd and `torch.func` differentiate in the columns.

    What is made in forward mode (J X of ordinary Jacobians and of undeclared decoders) is differentiated in reverse
    mode alone. torch's older batching (``vectorize=True``, ``is_grads_batched=True``) is not served: use `torch.func`.

    Attributes
    ----------
    shape : (int, int)
        (d_out, d_in).
    dtype : torch.dtype
    device : torch.device
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device

    def matmat(self, X: Tensor) -> Tensor:
        """Return A X: (d_in, b) to (d_out, b).

        Raises
        ------
        OperatorError
            If X has another shape, dtype or device, or is not finite.
        """
        check_block(self, X, self.shape[1], name := f"{type(self).__name__}.matmat")
        return product(name, self._matmat, self._matmat, self._rmatmat, X)

    def rmatmat(self, Y: Tensor) -> Tensor:
        """Return Aᵀ Y: (d_out, b) to (d_in, b).

        Raises
        ------
        OperatorError
            If Y has another shape, dtype or device, or is not finite.
        """
        check_block(self, Y, self.shape[0], name := f"{type(self).__name__}.rmatmat")
        return product(name, self._rmatmat, self._rmatmat, self._matmat, Y)

    def __matmul__(self, X: Tensor) -> Tensor:
        """Return A X as `matmat` does, (d_in, b) to (d_out, b), or A x of one vector, (d_in,) to (d_out,).

        Raises
        ------
        OperatorError
            As in `matmat`.
        """
        if isinstance(X, Tensor) and X.shape == (self.shape[1],):
            return self.matmat(X[:, None])[:, 0]
        return self.matmat(X)

    @abstractmethod
    def _matmat(self, X: Tensor) -> Tensor: ...

    @abstractmethod
    def _rmatmat(self, Y: Tensor) -> Tensor: ...

    @property
    def T(self) -> MatrixFree:
        """The transposed operator."""
        return Transposed(self)

    @in_own_precision
    def dense(self) -> Tensor:
        """Return the matrix (d_out, d_in), by products with the smaller identity."""
        rows, columns = self.shape
        eye = torch.eye(min(rows, columns), dtype=self.dtype, device=self.device)
        if rows <= columns:
            return torch.cat([self._rmatmat(part).T for part in eye.split(_DENSE_CHUNK, dim=1)])
        return torch.cat([self._matmat(part) for part in eye.split(_DENSE_CHUNK, dim=1)], dim=1)

    def aslinearoperator(self) -> ScipyOperator:
        """Return a ``scipy.sparse.linalg.LinearOperator`` over numpy arrays."""
        from scipy.sparse.linalg import LinearOperator

        # No closures: what holds the operator itself says why it is not pickled.
        forward, backward = partial(self._of_arrays, self.matmat), partial(self._of_arrays, self.rmatmat)
        dtype = torch.empty(0, dtype=self.dtype, device="cpu").numpy().dtype
        return LinearOperator(
            self.shape, matvec=forward, matmat=forward, rmatvec=backward, rmatmat=backward, dtype=dtype
        )

    def _of_arrays(self, method: Callable[[Tensor], Tensor], X: Any) -> Any:
        """Return a product with a numpy array of columns, or with one vector."""
        import numpy as np

        X = np.asarray(X)
        columns = X[:, None] if X.ndim == 1 else X
        out = method(torch.from_numpy(np.array(columns)).to(self.device, self.dtype)).cpu().numpy()
        return out[:, 0] if X.ndim == 1 else out


class Transposed(MatrixFree):
    """The transpose of an operator."""

    def __init__(self, operator: MatrixFree) -> None:
        self.operator = operator
        self.shape = (operator.shape[1], operator.shape[0])
        self.dtype, self.device = operator.dtype, operator.device

    def __repr__(self) -> str:
        """One line: that of the operator, transposed."""
        return f"{self.operator!r}.T"

    @property
    def _elsewhere(self) -> str:
        return self.operator._elsewhere

    def _matmat(self, X: Tensor) -> Tensor:
        return self.operator._rmatmat(X)

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return self.operator._matmat(Y)

    @property
    def T(self) -> MatrixFree:
        """The operator this is the transpose of."""
        return self.operator
