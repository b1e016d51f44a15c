"""The matrices of a batch, written out by unit vectors: row by row, or column by column where that is cheaper."""

import torch
from torch import Tensor

from detjac_lanczos.solvers.chunks import chunk_width
from detjac_lanczos.solvers.counting import CountingBatch
from detjac_lanczos.solvers.operator import Direction
from detjac_lanczos.solvers.sides import writing_ways


class Materialisation:
    """Matrices of all operators, written by unit vectors, a chunk at a time.

    Operators with one output space share every pass where they are written by rows; others take turns.

    Attributes
    ----------
    ways : list of Direction
        Which way each operator's unit vectors go: transposed ones make rows, forward ones columns.
    matrices : list of Tensor, each (d_out, d_in), in working precision
        Empty before the first pass: one that is never made takes no memory.
    """

    def __init__(self, batch: CountingBatch) -> None:
        self.batch = batch
        self.matrices: list[Tensor] = []
        self.ways, _ = writing_ways(batch.shapes, batch.costs, batch.shared_cost)
        self._shared = batch.one_output_space and self.ways[0] is Direction.TRANSPOSED
        self._chunks = self._plan()

    @property
    def passes(self) -> int:
        """Passes still to make."""
        return len(self._chunks)

    @property
    def cost_of_one(self) -> float:
        """Row-sweeps of a pass of one unit vector."""
        return self.batch.shared_cost if self._shared else self.batch.costs[0]

    def run(self) -> list[Tensor]:
        """Make all passes that are left and return the matrices."""
        while self._chunks:
            self.advance()
        return self.matrices

    def advance(self) -> None:
        """Make one pass."""
        if not self.matrices:
            batch = self.batch
            self.matrices = [torch.empty(shape, dtype=batch.dtype, device=batch.device) for shape in batch.shapes]
        group, start, stop = self._chunks.pop(0)
        for index, product in zip(group, self._send(group[0], start, stop), strict=True):
            rows_of(self.matrices[index], self.ways[index])[start:stop] = product

    def send_again(self, count: int) -> None:
        """Send the first unit vectors again: beside a pass of other rows, their time shows what a pass costs alone."""
        self._send(0, 0, min(count, self._side(0)))

    def _send(self, first: int, start: int, stop: int) -> list[Tensor]:
        """Return these rows (or columns) of every matrix, or of the ``first`` one where operators take turns."""
        rows = torch.zeros(stop - start, self._side(first), dtype=self.batch.dtype, device=self.batch.device)
        rows[:, start:stop].fill_diagonal_(1.0)
        if self._shared:
            return self.batch.apply_shared(rows)
        return self.batch.apply(self.ways[first], [(first, rows)])

    def _side(self, index: int) -> int:
        """Return how many unit vectors write a matrix."""
        return self.batch.shapes[index][self.ways[index] is Direction.FORWARD]

    def _plan(self) -> list[tuple[list[int], int, int]]:
        count = len(self.batch)
        groups = [list(range(count))] if self._shared else [[index] for index in range(count)]
        chunks = []
        for group in groups:
            side = self._side(group[0])
            width = chunk_width(self.batch.shared_cost if self._shared else self.batch.costs[group[0]], side)
            chunks += [(group, start, min(start + width, side)) for start in range(0, side, width)]
        return chunks


def rows_of(matrix: Tensor, way: Direction) -> Tensor:
    """Return a view of a matrix whose rows are the products of unit vectors that went this way."""
    return matrix if way is Direction.TRANSPOSED else matrix.T
