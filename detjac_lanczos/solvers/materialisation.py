"""The matrices of a batch, written out row by row by unit cotangents."""

import torch
from torch import Tensor

from detjac_lanczos.solvers.chunks import chunk_width
from detjac_lanczos.solvers.counting import CountingBatch
from detjac_lanczos.solvers.operator import Direction


class Materialisation:
    """Matrices of all operators, written row by row by unit cotangents, a chunk at a time.

    Operators with one output space share every pass; others take turns.

    Attributes
    ----------
    matrices : list of Tensor, each (d_out, d_in), in working precision
        Empty before the first pass: one that is never made takes no memory.
    """

    def __init__(self, batch: CountingBatch) -> None:
        self.batch = batch
        self.matrices: list[Tensor] = []
        self._shared = batch.one_output_space
        self._chunks = self._plan()

    @property
    def passes(self) -> int:
        """Passes still to make."""
        return len(self._chunks)

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
            self.matrices[index][start:stop] = product

    def send_one_again(self) -> None:
        """Send the first row again, alone: beside a pass of many, its time shows what a pass costs without rows."""
        self._send(0, 0, 1)

    def _send(self, first: int, start: int, stop: int) -> list[Tensor]:
        """Return these rows of every matrix, or of the ``first`` one where operators take turns."""
        d_out = self.batch.shapes[first][0]
        rows = torch.zeros(stop - start, d_out, dtype=self.batch.dtype, device=self.batch.device)
        rows[:, start:stop].fill_diagonal_(1.0)
        if self._shared:
            return self.batch.apply_shared(rows)
        return self.batch.apply(Direction.TRANSPOSED, [(first, rows)])

    def _plan(self) -> list[tuple[list[int], int, int]]:
        count = len(self.batch)
        groups = [list(range(count))] if self._shared else [[index] for index in range(count)]
        chunks = []
        for group in groups:
            d_out = self.batch.shapes[group[0]][0]
            width = chunk_width(self.batch.shared_cost if self._shared else self.batch.costs[group[0]], d_out)
            chunks += [(group, start, min(start + width, d_out)) for start in range(0, d_out, width)]
        return chunks
