"""What a weight is: a matrix that multiplies rows from either side, in place.

``Weight`` is the protocol the detached network speaks. The dense implementation holds the model's own parameter; no
second copy, in either direction. `UnfusedWeight` is for weights that know their two products only.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Protocol, Unpack

import torch
from torch import Tensor

from detjac_kernels import linear, linear_transposed, surrounded
from detjac_kernels.gemm import Around


class Weight(Protocol):
    """A linear map on rows: ``apply`` is ``x Wᵀ``, ``apply_transposed`` is ``y W``, with ``shape`` (f, d)."""

    @property
    def shape(self) -> tuple[int, int]:
        """Output and input width, (f, d)."""

    @property
    def device(self) -> torch.device:
        """Where its values lie."""

    def apply(self, x: Tensor, **around: Unpack[Around]) -> Tensor:
        """Return ``(((x ∘ scale) Wᵀ) ∘ gate) ∘ out_scale + add``: (R, d) to (R, f)."""

    def apply_transposed(self, y: Tensor, **around: Unpack[Around]) -> Tensor:
        """Return ``(((y ∘ scale) W) ∘ gate) ∘ out_scale + add``: (R, f) to (R, d)."""

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return W as a plain matrix (f, d); decoded or copied where it is not stored so."""


class DenseWeight:
    """A parameter of the model, used where it lies."""

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter.detach()
        self.shape, self.device = (parameter.shape[0], parameter.shape[1]), parameter.device

    def apply(self, x: Tensor, **around: Unpack[Around]) -> Tensor:
        """Return ``(((x ∘ scale) Wᵀ) ∘ gate) ∘ out_scale + add``: (R, d) to (R, f)."""
        return linear(x, self.parameter, **around)

    def apply_transposed(self, y: Tensor, **around: Unpack[Around]) -> Tensor:
        """Return ``(((y ∘ scale) W) ∘ gate) ∘ out_scale + add``: (R, f) to (R, d)."""
        return linear_transposed(y, self.parameter, **around)

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return W as a plain matrix (f, d)."""
        return self.parameter if dtype is None else self.parameter.to(dtype)


class UnfusedWeight(ABC):
    """A weight given by its two plain products: what a GEMM could take along is done before and after them."""

    shape: tuple[int, int]
    device: torch.device

    @abstractmethod
    def product(self, x: Tensor) -> Tensor:
        """Return ``x Wᵀ``, a tensor of its own: (R, d) to (R, f)."""

    @abstractmethod
    def product_transposed(self, y: Tensor) -> Tensor:
        """Return ``y W``, a tensor of its own: (R, f) to (R, d)."""

    def apply(self, x: Tensor, **around: Unpack[Around]) -> Tensor:
        """Return ``(((x ∘ scale) Wᵀ) ∘ gate) ∘ out_scale + add``: (R, d) to (R, f)."""
        return surrounded(self.product, x, **around)

    def apply_transposed(self, y: Tensor, **around: Unpack[Around]) -> Tensor:
        """Return ``(((y ∘ scale) W) ∘ gate) ∘ out_scale + add``: (R, f) to (R, d)."""
        return surrounded(self.product_transposed, y, **around)


class PerHeadWeight(UnfusedWeight):
    """The same rows of every head of a fused weight: ``parameter`` (heads, rows, d), a strided view used in place.

    No GEMM takes it as one matrix. A CPU multiplies by the rows of some heads at a time, copied side by side: a GEMM
    would read them from memory first, too, and a product of batches takes one of torch's two float32 libraries only
    (Zen 5, 16 heads of 64 rows of width 1024, 112 rows: 0.75 and 0.9 ms forwards and transposed, not 1.3 and 2.9).
    """

    PANEL = 1 << 20
    """Numbers that are copied at a time, 4 MB in float32. A head that is larger is used in place."""

    def __init__(self, parameter: Tensor) -> None:
        heads, rows, d = parameter.shape
        self.parameter = parameter.detach()
        self.shape, self.device = (heads * rows, d), parameter.device

    @classmethod
    def heads_at_once(cls, parameter: Tensor) -> int:
        """Return how many heads are copied at a time."""
        heads, rows, d = parameter.shape
        return max(1, min(heads, cls.PANEL // (rows * d)))

    def product(self, x: Tensor) -> Tensor:
        """Return ``x Wᵀ``: (R, d) to (R, heads · rows)."""
        if not x.is_cpu:
            return self.product_by_head(x).transpose(0, 1).flatten(1)
        out = x.new_empty(len(x), self.shape[0])
        for columns, panel in self._panels():
            out[:, columns] = linear(x, panel)
        return out

    def product_by_head(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Return ``(x ∘ scale) Wᵀ``, each head apart: (R, d) to (heads, R, rows). One product, of a batch."""
        x = x if scale is None else (x * scale).to(x.dtype)
        return torch.bmm(x.expand(len(self.parameter), *x.shape), self.parameter.transpose(1, 2))

    def product_transposed(self, y: Tensor) -> Tensor:
        """Return ``y W``: (R, heads · rows) to (R, d). Half precision is summed over panels in float32."""
        if y.dtype.itemsize < torch.float32.itemsize:
            total = y.new_zeros(len(y), self.shape[1], dtype=torch.float32)
            for columns, panel in self._panels():
                total += linear_transposed(y[:, columns], panel)
            return total.to(y.dtype)
        if not y.is_cpu:
            by_head = y.unflatten(1, self.parameter.shape[:2]).transpose(0, 1)
            return torch.addbmm(y.new_zeros(len(y), self.shape[1]), by_head, self.parameter, beta=0)
        out = None
        for columns, panel in self._panels():
            out = linear_transposed(y[:, columns], panel, add=out)
        assert out is not None
        return out

    def _panels(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the columns of ``x Wᵀ`` that some heads make, and their rows side by side, (columns, d)."""
        start = 0
        for heads in self.parameter.split(self.heads_at_once(self.parameter)):
            panel = heads.flatten(0, 1)
            yield slice(start, start + len(panel)), panel
            start += len(panel)

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return W as a plain matrix (f, d)."""
        return self.parameter.flatten(0, 1).to(dtype or self.parameter.dtype)


class AlternatingWeight(UnfusedWeight):
    """Every second row, from ``first`` on, of a matrix (2f, d) that is used in place.

    No GEMM takes such rows where they alternate within a line of memory, and to gather them reads every line. A few
    rows are therefore multiplied by the whole matrix, which reads it once: twice the arithmetic in less time. More rows
    pay for gathering.
    """

    WHOLE_ROWS = 32
    """So many rows at most: a sweep of 112 over eight experts of width 1024, two a row, then takes 1.63 times its GEMMs
    and not 1.75 (two cores of a Xeon).
    """

    def __init__(self, matrix: Tensor, first: int) -> None:
        self.matrix, self.first = matrix.detach(), first
        self.shape, self.device = (matrix.shape[0] // 2, matrix.shape[1]), matrix.device

    def product(self, x: Tensor) -> Tensor:
        """Return ``x Wᵀ``: (R, d) to (R, f)."""
        if len(x) > self.WHOLE_ROWS:
            return linear(x, self._gathered)
        return linear(x, self.matrix)[:, self.first :: 2].contiguous()

    def product_transposed(self, y: Tensor) -> Tensor:
        """Return ``y W``: (R, f) to (R, d)."""
        if len(y) > self.WHOLE_ROWS:
            return linear_transposed(y, self._gathered)
        both = y.new_zeros(len(y), len(self.matrix))
        both[:, self.first :: 2] = y
        return linear_transposed(both, self.matrix)

    @property
    def _gathered(self) -> Tensor:
        """Its rows side by side, in the order they lie."""
        return self.matrix[self.first :: 2].clone()

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return W as a plain matrix (f, d)."""
        return self.matrix[self.first :: 2].to(dtype or self.matrix.dtype)


Part = Callable[[Tensor], Tensor]
"""Which rows of a fused weight are meant: (f, d) to a view (f', d), or (heads, rows, d)."""


def matrix_weight(matrix: Tensor) -> Weight:
    """Return the weight of a matrix (f, d), or of the same rows of every head (heads, rows, d); a view stays one."""
    return DenseWeight(matrix) if matrix.ndim == 2 else PerHeadWeight(matrix)
