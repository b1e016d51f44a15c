"""Matrices with known singular values, and operators that count or misbehave."""

import numpy as np
import torch
from torch import Tensor


def spectrum(name: str, size: int, k: int = 8) -> np.ndarray:
    """Return one of the test spectra, descending."""
    index = np.arange(1, size + 1)
    root = 1 / np.sqrt(index)
    generator = np.random.default_rng(3)
    if name == "geometric":
        return 0.9**index
    if name == "harmonic":
        return 1 / index
    if name == "root":
        return root
    if name == "spike":
        return np.concatenate([[20.0], root[:-1]])
    if name == "flat":
        return np.sort(1 + 0.01 * generator.standard_normal(size))[::-1]
    if name == "cluster":
        return np.sort(np.concatenate([1 + 1e-3 * generator.random(8), np.linspace(0.5, 0.25, size - 8)]))[::-1]
    if name == "multiple":
        root[k - 4 : k + 1] = root[k - 4]
        return root
    if name == "staircase":
        return 0.5 ** ((index - 1) // 4)
    if name == "graded":
        return 10.0 ** (-30 * (index - 1) / (size - 1))
    if name == "gap":
        root[k] = root[k - 1] - 1e-9
        return np.sort(root)[::-1]
    raise ValueError(name)


def matrix(values: np.ndarray, shape: tuple[int, int], seed: int = 0) -> Tensor:
    """Return Q₁ diag(values) Q₂ᵀ, float64, with random orthonormal Q₁ and Q₂."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(rows, len(values), generator=generator, dtype=torch.float64))[0] for rows in shape
    )
    return (left * torch.from_numpy(values.copy())) @ right.T


class Recorder:
    """A matrix as an operator that counts its calls and columns, and may spoil its products."""

    def __init__(self, matrix: Tensor, transpose: Tensor | None = None) -> None:
        self.matrix, self.transpose = matrix, matrix.T if transpose is None else transpose
        self.shape, self.dtype, self.device = tuple(matrix.shape), matrix.dtype, matrix.device
        self.forward: list[int] = []
        self.transposed: list[int] = []

    def matmat(self, X: Tensor) -> Tensor:
        self.forward.append(X.shape[1])
        return self.spoil(self.matrix @ X)

    def rmatmat(self, Y: Tensor) -> Tensor:
        self.transposed.append(Y.shape[1])
        return self.spoil(self.transpose @ Y)

    def spoil(self, product: Tensor) -> Tensor:
        return product


class SharingBatch:
    """Matrices of one height as a batch that shares cotangents: operator i costs ``rows[i]``, a shared column fewer."""

    def __init__(self, matrices: list[Tensor], rows: list[float]) -> None:
        self.matrices, self.rows = matrices, rows
        self.shapes = [tuple(matrix.shape) for matrix in matrices]
        self.dtype, self.device = matrices[0].dtype, matrices[0].device
        self.calls: list[tuple[str, list[int]]] = []

    def matmat(self, blocks):
        self.calls.append(("forward", [X.shape[1] for _, X in blocks]))
        return [self.matrices[index] @ X for index, X in blocks]

    def rmatmat(self, blocks):
        self.calls.append(("transposed", [Y.shape[1] for _, Y in blocks]))
        return [self.matrices[index].T @ Y for index, Y in blocks]

    def rmatmat_shared(self, Y):
        self.calls.append(("shared", [Y.shape[1]]))
        return [matrix.T @ Y for matrix in self.matrices]

    def cost(self, index: int) -> float:
        return self.rows[index]

    def shared_cost(self) -> float:
        return max(self.rows)


class TimedBatch(SharingBatch):
    """A batch whose sweeps move a clock by a given time a pass and a row, and more in those of ``hiccups``."""

    def __init__(self, matrices, rows, per_pass: float, per_row: float) -> None:
        super().__init__(matrices, rows)
        self.per_pass, self.per_row, self.now, self.hiccups = per_pass, per_row, 0.0, {}

    def matmat(self, blocks):
        self.wait(sum(self.rows[index] * X.shape[1] for index, X in blocks))
        return super().matmat(blocks)

    def rmatmat(self, blocks):
        self.wait(sum(self.rows[index] * Y.shape[1] for index, Y in blocks))
        return super().rmatmat(blocks)

    def rmatmat_shared(self, Y):
        self.wait(self.shared_cost() * Y.shape[1])
        return super().rmatmat_shared(Y)

    def wait(self, rows: float) -> None:
        self.now += self.per_pass + self.per_row * rows + self.hiccups.get(len(self.calls), 0.0)

    def perf_counter(self) -> float:
        return self.now
