"""Operators whose singular values are known exactly: a diagonal between products of random reflections."""

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
        self._left, self._right = (
            torch.nn.functional.normalize(
                torch.randn(_REFLECTIONS, size, generator=generator, dtype=torch.float64), dim=1
            ).to(dtype)
            for size in shape
        )

    def matmat(self, X: Tensor) -> Tensor:
        """(d_in, b) to (d_out, b)."""
        return _reflect(self._scaled(_reflect(X, self._right), self.shape[0]), self._left.flip(0))

    def rmatmat(self, Y: Tensor) -> Tensor:
        """(d_out, b) to (d_in, b)."""
        return _reflect(self._scaled(_reflect(Y, self._left), self.shape[1]), self._right.flip(0))

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
        return _reflect(unit, self._right.flip(0))

    def _scaled(self, block: Tensor, rows: int) -> Tensor:
        count = len(self._diagonal)
        out = block.new_zeros(rows, block.shape[1])
        out[:count] = self._diagonal * block[:count]
        return out


def _reflect(block: Tensor, mirrors: Tensor) -> Tensor:
    for mirror in mirrors:
        block = block - 2.0 * torch.outer(mirror, mirror @ block)
    return block
