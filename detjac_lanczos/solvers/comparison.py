"""How far matrices that were written out are from their operators."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from detjac_lanczos.solvers.chunks import turns
from detjac_lanczos.solvers.contradiction import cause
from detjac_lanczos.solvers.finish import Found
from detjac_lanczos.solvers.materialisation import Materialisation, rows_of
from detjac_lanczos.solvers.operator import Direction
from detjac_lanczos.solvers.options import Options
from detjac_lanczos.solvers.result import Status
from detjac_lanczos.solvers.rounding import adjoint_bound, safe_scale


class Comparison:
    """Matrices of all operators, held against products the other way than those that they were written by.

    A matrix M is not quite the operator A: its products are rounded otherwise, and those of one way had no part in it,
    the forward ones where it was written by rows. A random unit vector r shows the difference, as
    E ‖(A - M) r‖² = ‖A - M‖_F² / d_in. Where it was written by columns, all of that is of Aᵀ, Mᵀ and d_out.

    Parameters
    ----------
    dense : Materialisation
        Of all operators; what is missing is written.

    Attributes
    ----------
    matrices : list of Tensor, each (d_out, d_in)
    ways : list of Direction
        Which way the unit vectors went.
    differences : dict of (float, float)
        ‖(A - M) r‖ of each operator that was compared, and the length of A r: ‖M‖_F / √d_in, what is expected of it,
        at least.
    later : dict of (float, float)
        The largest ‖(A - M) x‖ of unit vectors x that were sent after that, and σ_1.
    """

    def __init__(self, dense: Materialisation) -> None:
        self.batch, self.matrices, self.ways = dense.batch, dense.run(), dense.ways
        self.differences: dict[int, tuple[float, float]] = {}
        self.later: dict[int, tuple[float, float]] = {}
        self._compared: dict[int, tuple[Tensor, Tensor]] = {}

    def run(self, seed: int) -> None:
        """Send one random vector through every operator, and note how far it comes out from the matrix's.

        The matrices come from products of one way alone: a wrong one the other way would otherwise go unseen.
        """
        generator = torch.Generator().manual_seed(seed)
        told = [index for index in range(len(self.matrices)) if index not in self.batch.nonfinite]
        for turn in turns([self.batch.costs[index] for index in told]):
            blocks = []
            for index in (told[place] for place in turn):
                matrix = rows_of(self.matrices[index], self.ways[index])
                row = torch.randn(1, matrix.shape[1], dtype=torch.float64, device="cpu", generator=generator)
                blocks.append((index, (row / row.norm()).to(matrix)))
            for (index, row), product in zip(blocks, self.against(blocks), strict=True):
                if index not in self.batch.nonfinite:
                    self._compared[index] = row, product
                    self.differences[index] = self._difference(index, row, product)

    def against(self, blocks: Sequence[tuple[int, Tensor]]) -> list[Tensor]:
        """Return products of rows the way that had no part in the matrices, in one pass for all that go one way."""
        products: dict[int, Tensor] = {}
        for way in Direction:
            turn = [(index, rows) for index, rows in blocks if self.ways[index] is way.other]
            if turn:
                products |= zip((index for index, _ in turn), self.batch.apply(way, turn), strict=True)
        return [products[index] for index, _ in blocks]

    def distance(self, index: int) -> float:
        """Return √d_in ‖(A - M) r‖, an estimate of ‖A - M‖_F: what the product of any unit vector may differ by."""
        length = self.batch.shapes[index][self.ways[index] is Direction.TRANSPOSED]
        return math.sqrt(length) * self.differences.get(index, (math.inf, 0.0))[0]

    def note(self, index: int, found: Found, difference: float) -> None:
        """Take note of one more ‖(A - M) x‖ of a unit vector, in the units of what was found."""
        difference, first = difference / found.scale, found.first / found.scale
        self.later[index] = max(self.later.get(index, (0.0, first))[0], difference), first

    def of_triplets(self, index: int, found: Found) -> Tensor:
        """Return what products may differ by, (k,) in float64: ‖(A - M) r‖, times σ_j / ‖A r‖ where that is more."""
        difference, length = self.differences[index]
        times = (found.values.double() / (length * found.scale)).nan_to_num(1.0).clamp_min(1.0)
        return difference * found.scale * times

    def contradictions(self, options: Options) -> dict[int, Status]:
        """Return what is wrong with the operators whose difference from the matrix is more than rounding; each once.

        Where the vector, or the first unit vector, comes out differently once more, it is the operator that changes;
        either is sent again only where ``max_products`` leaves a product for it.
        """
        found: dict[int, Status] = {}
        for index, (row, product) in list(self._compared.items()):
            kept = [known[index] for known in (self.differences, self.later) if index in known]
            exceeding = [one / length for one, length in kept if self._exceeds(index, one, length)]
            if exceeding:
                found[index] = self._why(index, row, product, options, max(exceeding))
                del self._compared[index]
        return found

    def _exceeds(self, index: int, difference: float, length: float) -> bool:
        return difference > adjoint_bound(self.batch.epsilon(index, length), max(self.batch.shapes[index])) * length

    def _difference(self, index: int, row: Tensor, product: Tensor) -> tuple[float, float]:
        """Return how far the product of a row is from that with the matrix, and how long; half of ε at least.

        The random row may be a unit vector, as in a space of one dimension, which shows no rounding.
        """
        scale = safe_scale(self.matrices[index])
        matrix, ahead = rows_of(self.matrices[index], self.ways[index]) * scale, product * scale
        length = max(float(ahead.norm()), float(matrix.norm()) / matrix.shape[1] ** 0.5)
        eps = self.batch.epsilon(index, length / scale)
        difference = float((ahead - row @ matrix.T).norm())
        return max(difference, eps * length / 2) / scale, length / scale

    def _why(self, index: int, row: Tensor, product: Tensor, options: Options, defect: float) -> Status:
        way, matrix = self.ways[index], rows_of(self.matrices[index], self.ways[index])
        scale = safe_scale(matrix)
        unit = torch.eye(1, matrix.shape[0], dtype=row.dtype, device=row.device)
        sent = [(way.other, row, product * scale), (way, unit, matrix[:1] * scale)]
        return cause(self.batch, index, sent, scale, options, defect=defect)
