"""Jacobians of many tokens written out to a file, bit by bit, that stand in for the sweeps which made them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ROWS_AT_ONCE = 16384


class StoredJacobians:
    """A batch whose products are those of its matrices, stored in float32; a column costs what it costs the batch.

    Writing them is what takes the time, a pass of shared cotangents after the other. It can be cut off and goes on
    where it stopped, in the file of the same text.

    Parameters
    ----------
    batch : JacobianBatch
        Of one output space, on the CPU in float32.
    ids : sequence of int
        The text, which names the file.
    folder : Path
    """

    def __init__(self, batch: Any, ids: Sequence[int], folder: Path) -> None:
        self.batch = batch
        self.shapes, self.dtype, self.device = batch.shapes, batch.dtype, batch.device
        self.cost, self.shared_cost = batch.cost, batch.shared_cost
        folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:16]
        self._written = folder / f"{name}.rows"
        path, (d_out, d_in) = folder / f"{name}.npy", self.shapes[0]
        done = int(self._written.read_text()) if self._written.exists() and path.exists() else 0
        stored = np.lib.format.open_memmap(
            path, mode="r+" if done else "w+", dtype=np.float32, shape=(len(self.shapes), d_out, d_in)
        )
        self.matrices = torch.from_numpy(stored)
        self._write(done)

    def _write(self, done: int) -> None:
        d_out = self.shapes[0][0]
        width = max(1, int(_ROWS_AT_ONCE / self.shared_cost()))
        identity = torch.eye(d_out, dtype=self.dtype)
        for first in range(done, d_out, width):
            for matrix, rows in zip(
                self.matrices, self.batch.rmatmat_shared(identity[:, first : first + width]), strict=True
            ):
                matrix[first : first + width] = rows.T
            self._written.write_text(str(min(first + width, d_out)))

    def largest_values(self) -> Tensor:
        """Return σ_1 of every operator by a dense SVD: (operators,) float64."""
        return torch.stack([torch.linalg.svdvals(matrix)[0].double() for matrix in self.matrices])

    def matmat(self, blocks: Sequence[tuple[int, Tensor]]) -> list[Tensor]:
        """Map ``[(operator, (d_in, b_i))]`` to ``[(d_out, b_i)]``."""
        return [self.matrices[index] @ X for index, X in blocks]

    def rmatmat(self, blocks: Sequence[tuple[int, Tensor]]) -> list[Tensor]:
        """Map ``[(operator, (d_out, b_i))]`` to ``[(d_in, b_i)]``."""
        return [self.matrices[index].T @ Y for index, Y in blocks]

    def rmatmat_shared(self, Y: Tensor) -> list[Tensor]:
        """Map one cotangent block ``(d_out, b)`` by every operator's transpose, to ``[(d_in, b)]``."""
        return [matrix.T @ Y for matrix in self.matrices]

    def matmat_sum(self, blocks: Sequence[tuple[int, Tensor]]) -> Tensor:
        """Map ``[(operator, (d_in, b))]`` to the sum of the products, ``(d_out, b)``."""
        total = torch.zeros(self.shapes[0][0], blocks[0][1].shape[1], dtype=self.dtype)
        for index, X in blocks:
            total += self.matrices[index] @ X
        return total
