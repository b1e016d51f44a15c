"""Operators whose singular values are known exactly: a diagonal between products of random reflections."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_REFLECTIONS = 3


class SpectralOperator:
    """A = L diag(values) R, with L and R products of three random Householder reflections each.

    Gaussian start vectors see no difference to factors of any other kind, and a product costs a few inner products.

    Parameters
    ----------
    values : ndarray, descending, at most min(shape) of them
    shape : (int, int)
    seed : int
    dtype : torch.dtype
        What products are computed in.
    """

    def __init__(self, values: np.ndarray, shape: tuple[int, int], seed: int, dtype: torch.dtype) -> None:
        self.values, self.shape, self.dtype = values, shape, dtype
        self.device = torch.device("cpu")
        self._diagonal = torch.from_numpy(values.copy()).to(dtype)[:, None]
        generator = torch.Generator().manual_seed(seed)
        self._left, self._right = (_Reflections.random(size, generator, dtype) for size in shape)

    def matmat(self, X: Tensor) -> Tensor:
        """(d_in, b) to (d_out, b)."""
        return self._left.back(self._scaled(self._right.there(X), self.shape[0]))

    def rmatmat(self, Y: Tensor) -> Tensor:
        """(d_out, b) to (d_in, b)."""
        return self._right.back(self._scaled(self._left.there(Y), self.shape[1]))

    def double(self) -> "SpectralOperator":
        """Return the same operator with products in float64."""
        twin = object.__new__(SpectralOperator)
        twin.__dict__ = self.__dict__ | {
            "dtype": torch.float64,
            "_diagonal": self._diagonal.double(),
            "_left": self._left.double(),
            "_right": self._right.double(),
        }
        return twin

    def right_vectors(self, indices: list[int]) -> Tensor:
        """Right singular vectors, (d_in, len(indices))."""
        unit = torch.zeros(self.shape[1], len(indices), dtype=self.dtype)
        unit[indices, range(len(indices))] = 1.0
        return self._right.back(unit)

    def _scaled(self, block: Tensor, rows: int) -> Tensor:
        count = len(self._diagonal)
        out = block.new_zeros(rows, block.shape[1])
        out[:count] = self._diagonal * block[:count]
        return out


@dataclass(frozen=True)
class _Reflections:
    """Q = I - Y T Yᵀ, the product of the reflections at the orthogonal complements of the columns of Y.

    Source: Schreiber, Van Loan, "A storage-efficient WY representation", SIAM J. Sci. Stat. Comput. 10, 1989.
    """

    mirrors: Tensor
    factor: Tensor

    @classmethod
    def random(cls, size: int, generator: torch.Generator, dtype: torch.dtype) -> "_Reflections":
        drawn = torch.randn(_REFLECTIONS, size, generator=generator, dtype=torch.float64)
        mirrors = torch.nn.functional.normalize(drawn, dim=1).T
        factor = torch.zeros(_REFLECTIONS, _REFLECTIONS, dtype=torch.float64)
        for j in range(_REFLECTIONS):
            factor[:j, j] = -2.0 * factor[:j, :j] @ (mirrors[:, :j].T @ mirrors[:, j])
            factor[j, j] = 2.0
        return cls(mirrors.to(dtype), factor.to(dtype))

    def there(self, block: Tensor) -> Tensor:
        """Return Q times the block."""
        return block - self.mirrors @ (self.factor @ (self.mirrors.T @ block))

    def back(self, block: Tensor) -> Tensor:
        """Return Qᵀ times the block."""
        return block - self.mirrors @ (self.factor.T @ (self.mirrors.T @ block))

    def double(self) -> "_Reflections":
        """Return the same numbers in float64."""
        return _Reflections(self.mirrors.double(), self.factor.double())
