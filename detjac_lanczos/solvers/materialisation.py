"""The matrices of a batch, written out row by row by unit cotangents, and how far they are from their operators."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from detjac_lanczos.solvers.contradiction import cause
from detjac_lanczos.solvers.counting import CountingBatch
from detjac_lanczos.solvers.finish import Found
from detjac_lanczos.solvers.operator import Direction
from detjac_lanczos.solvers.options import Options
from detjac_lanczos.solvers.result import Status
from detjac_lanczos.solvers.rounding import adjoint_bound, safe_scale

_CHUNK_ROWS = 1024


class Materialisation:
    """Matrices of all operators, written row by row by unit cotangents, a chunk at a time.

    Operators with one output space share every pass; others take turns.

    A matrix M is not quite the operator A: its products are rounded otherwise, and forward products had no part in it.
    A random unit vector r shows the difference, as E ‖(A - M) r‖² = ‖A - M‖_F² / d_in.

    Attributes
    ----------
    matrices : list of Tensor, each (d_out, d_in), in working precision
        Empty before the first pass: one that is never made takes no memory.
    differences : dict of (float, float)
        ‖(A - M) r‖ of each operator that was compared, and the length of A r: ‖M‖_F / √d_in, what is expected of it,
        at least.
    later : dict of (float, float)
        The largest ‖(A - M) x‖ of unit vectors x that were sent after that, and σ_1.
    """

    def __init__(self, batch: CountingBatch) -> None:
        self.batch = batch
        self.matrices: list[Tensor] = []
        self.differences: dict[int, tuple[float, float]] = {}
        self.later: dict[int, tuple[float, float]] = {}
        self._compared: dict[int, tuple[Tensor, Tensor]] = {}
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

    def mismatch(self, index: int) -> float:
        """Return √d_in ‖(A - M) r‖, an estimate of ‖A - M‖_F: what the product of any unit vector may differ by."""
        return math.sqrt(self.batch.shapes[index][1]) * self.differences.get(index, (math.inf, 0.0))[0]

    def note(self, index: int, difference: float, first: float) -> None:
        """Take note of one more ‖(A - M) x‖ of a unit vector, where σ_1 is ``first``."""
        self.later[index] = max(self.later.get(index, (0.0, first))[0], difference), first

    def mismatches(self, index: int, found: Found) -> Tensor:
        """Return what products may differ by, (k,) in float64: ‖(A - M) r‖, times σ_j / ‖A r‖ where that is more."""
        difference, length = self.differences[index]
        times = (found.values.double() / (length * found.scale)).nan_to_num(1.0).clamp_min(1.0)
        return difference * found.scale * times

    def send_one_again(self) -> None:
        """Send the first row again, alone: beside a pass of many, its time shows what a pass costs without rows."""
        self._send(0, 0, 1)

    def compare(self, seed: int) -> None:
        """Send one random vector forward through every operator, and note how far it comes out from the matrix's.

        The matrices come from transposed products alone: a wrong forward product would otherwise go unseen.
        """
        generator = torch.Generator().manual_seed(seed)
        told = [index for index in range(len(self.matrices)) if index not in self.batch.nonfinite]
        for turn in turns([self.batch.costs[index] for index in told]):
            blocks = []
            for index in (told[place] for place in turn):
                matrix = self.matrices[index]
                row = torch.randn(1, matrix.shape[1], dtype=torch.float64, device="cpu", generator=generator)
                blocks.append((index, (row / row.norm()).to(matrix)))
            for (index, row), product in zip(blocks, self.batch.apply(Direction.FORWARD, blocks), strict=True):
                if index not in self.batch.nonfinite:
                    self._compared[index] = row, product
                    self.differences[index] = self._difference(index, row, product)

    def contradictions(self, options: Options) -> dict[int, Status]:
        """Return what is wrong with the operators whose difference from the matrix is more than rounding; each once.

        Where the vector, or the first row of the matrix, comes out differently once more, it is the operator that
        changes; either is sent again only where ``max_products`` leaves a product for it.
        """
        found: dict[int, Status] = {}
        for index, (row, product) in list(self._compared.items()):
            if any(self._exceeds(index, *kept[index]) for kept in (self.differences, self.later) if index in kept):
                found[index] = self._why(index, row, product, options)
                del self._compared[index]
        return found

    def _exceeds(self, index: int, difference: float, length: float) -> bool:
        return difference > adjoint_bound(self.batch.epsilon(index, length), max(self.batch.shapes[index])) * length

    def _send(self, first: int, start: int, stop: int) -> list[Tensor]:
        """Return these rows of every matrix, or of the ``first`` one where operators take turns."""
        d_out = self.batch.shapes[first][0]
        rows = torch.zeros(stop - start, d_out, dtype=self.batch.dtype, device=self.batch.device)
        rows[:, start:stop].fill_diagonal_(1.0)
        if self._shared:
            return self.batch.apply_shared(rows)
        return self.batch.apply(Direction.TRANSPOSED, [(first, rows)])

    def _difference(self, index: int, row: Tensor, product: Tensor) -> tuple[float, float]:
        """Return how far the product of a row is from that with the matrix, and how long; half of ε at least.

        The random row may be a unit vector, as in a space of one dimension, which shows no rounding.
        """
        scale = safe_scale(self.matrices[index])
        matrix, ahead = self.matrices[index] * scale, product * scale
        length = max(float(ahead.norm()), float(matrix.norm()) / matrix.shape[1] ** 0.5)
        eps = self.batch.epsilon(index, length / scale)
        difference = float((ahead - row @ matrix.T).norm())
        return max(difference, eps * length / 2) / scale, length / scale

    def _why(self, index: int, row: Tensor, product: Tensor, options: Options) -> Status:
        matrix = self.matrices[index]
        scale = safe_scale(matrix)
        unit = torch.eye(1, matrix.shape[0], dtype=row.dtype, device=row.device)
        sent = [(Direction.FORWARD, row, product * scale), (Direction.TRANSPOSED, unit, matrix[:1] * scale)]
        return cause(self.batch, index, sent, scale, options)

    def _plan(self) -> list[tuple[list[int], int, int]]:
        count = len(self.batch)
        groups = [list(range(count))] if self._shared else [[index] for index in range(count)]
        chunks = []
        for group in groups:
            d_out = self.batch.shapes[group[0]][0]
            width = chunk_width(self.batch.shared_cost if self._shared else self.batch.costs[group[0]], d_out)
            chunks += [(group, start, min(start + width, d_out)) for start in range(0, d_out, width)]
        return chunks


def chunk_width(cost: float, d_out: int) -> int:
    """Return how many columns to send at once: about a thousand rows, in chunks of one size."""
    at_most = max(1, min(d_out, round(_CHUNK_ROWS / max(cost, 1e-9))))
    return -(-d_out // -(-d_out // at_most))


def turns(costs: Sequence[float]) -> list[list[int]]:
    """Return operators in groups: a column of each is about as many rows as a chunk has, of one at least."""
    groups: list[list[int]] = []
    rows = 0.0
    for index, cost in enumerate(costs):
        rows += cost
        if not groups or rows > _CHUNK_ROWS:
            groups.append([])
            rows = cost
        groups[-1].append(index)
    return groups
