"""One basis of left vectors for all operators of a batch, grown by sweeps that all of them share."""

import math

import numpy as np
import torch
from torch import Tensor

from detjac_lanczos.solvers.basis import complete_block, dominant_rows, project_out, random_rows, thin_svd, to_numpy
from detjac_lanczos.solvers.counting import CountingBatch
from detjac_lanczos.solvers.options import Options
from detjac_lanczos.solvers.result import Status
from detjac_lanczos.solvers.rounding import (
    LARGEST_ADJOINT_BOUND,
    adjoint_bound,
    epsilon,
    epsilon_at,
    rounding_of,
    safe_scale,
)

STEERING_PROBES = 8

_HEADROOM = 1 / 16
"""How much of the range of the operators' dtype a sum of their products may be expected to fill."""


class Survey:
    """Orthonormal rows Q (m × d_out) with the products B_i = Q A_i of every operator A_i.

    σ_j(B_i) ≤ σ_j(A_i), and the SVD of B_i is the best that left vectors out of Q can give. A column that all operators
    share costs few rows (``shared_cost``), either way; the question is which m directions to spend.

    They are chosen to hold the k leading left vectors of all operators at once. With s, V the leading values and right
    vectors (rows) of B_i, what Q lacks of their images is R_i = (I - QᵀQ) A_i Vᵀ. Weighted by W_i = diag(s_j² / s_1³),
    relative and the leading ones first, these stand side by side in one matrix

        R = [R_1 W_1, R_2 W_2, …].

    R itself would cost columns of every operator alone. But its sketch ωᵀ R by a random ω is made of the products
    A_iᵀ (I - QᵀQ) ω, which one shared column gives and each block that joins Q updates without a pass. With C the
    leading right singular vectors of the sketch by a few ω, *steering probes*, R C holds its leading left directions (a
    step of randomised subspace iteration: Halko, Martinsson, Tropp 2011, algorithm 4.4), and R C is, outside Q, one sum
    of products Σ_i A_i (Vᵀ W_i C_i). Its columns join Q, a shared pass gives their products, and so on.

    Attributes
    ----------
    basis : Tensor, shape (m, d_out)
    products : list of Tensor, each (m, d_in)
        B_i, times ``scales[i]``.
    scales : list of float
        Powers of two that keep squares of each operator's products in range.
    fault : Status or None
        What is wrong where a sum of products contradicted the transposed ones.
    """

    def __init__(self, batch: CountingBatch, options: Options, size: int) -> None:
        d_out = batch.shapes[0][0]
        self.batch, self.options, self.size = batch, options, min(size, d_out)
        self.eps = epsilon(batch.operator_dtype)
        self.generator = torch.Generator().manual_seed(options.seed)
        self.basis = torch.empty(0, d_out, dtype=batch.dtype, device=batch.device)
        self.fault: Status | None = None
        self._blocks: list[list[Tensor]] = [[] for _ in range(len(batch))]
        self._probes = random_rows(max(STEERING_PROBES, options.width), self.basis, self.generator)
        images = self._pulled(self._probes)
        self.scales = [safe_scale(image) for image in images]
        self._images = [image * scale for image, scale in zip(images, self.scales, strict=True)]
        self._leading = list(self._images)

    @property
    def sound(self) -> list[int]:
        """Operators whose products are finite."""
        return [index for index in range(len(self.batch)) if index not in self.batch.nonfinite]

    @property
    def products(self) -> list[Tensor]:
        """B_i of every operator, scaled; no rows where its products were not finite from the start."""
        empty = [self.basis.new_empty(0, d_in) for _, d_in in self.batch.shapes]
        return [torch.cat([none, *blocks]) for none, blocks in zip(empty, self._blocks, strict=True)]

    def run(self) -> None:
        """Grow the basis to its size, or to k and on until the probes see nothing of the leading triplets outside."""
        while self.basis.shape[0] < self.size and self.sound and self.fault is None and self._grow():
            self.report()

    def pulled(self, rows: Tensor) -> list[Tensor]:
        """Apply every transpose to rows ``(r, d_out)``: ``(r, d_in)`` each, scaled."""
        if not len(rows):
            return [rows.new_zeros(0, d_in) for _, d_in in self.batch.shapes]
        products = self._pulled(rows)
        return [product * scale for product, scale in zip(products, self.scales, strict=True)]

    def report(self) -> None:
        """Hand the values so far to the callback's reporter."""
        if self.batch.reporter.callback is not None:
            for index in self.sound:
                values = to_numpy(self._triplets(index)[0])
                self.batch.reporter.take(index, values, np.empty(0), self.scales[index])

    def _grow(self) -> bool:
        """Add a block to the basis; False, and nothing added, where no operator lacks more than the tolerance."""
        firsts, weighted, sketches, lacking = [], [], [], self.basis.shape[0] < self.options.k
        for index in self.sound:
            values, right = self._triplets(index)
            first = values[0].clamp_min(torch.finfo(values.dtype).tiny)
            firsts.append(float(first))
            weighted.append(((values / first) ** 2)[:, None] * right / first)
            sketches.append(weighted[-1] @ self._images[index].T)
            lengths = (right @ self._images[index].T).square().mean(dim=1).sqrt()
            lacking |= bool((lengths > self.options.tol * values + rounding_of(self.eps, float(first))).any())
        if not lacking:
            return False
        width = min(self.options.width, self.size - self.basis.shape[0])
        mix = thin_svd(torch.cat(sketches))[0][:, :width]
        parts = mix.split([len(sketch) for sketch in sketches])
        unit = max(self.scales[index] for index in self.sound)
        blocks = [
            (index, self.scales[index] / unit * (part.T @ rows))
            for index, part, rows in zip(self.sound, parts, weighted, strict=True)
        ]
        largest = max(float(rows.abs().max()) for _, rows in blocks) or 1.0
        # The sum of all products may not overflow where each of them does not: float16 ends at 65,504.
        expected = sum(
            first / self.scales[index] * float(rows.double().norm())
            for first, (index, rows) in zip(firsts, blocks, strict=True)
        )
        largest = max(largest, expected / (torch.finfo(self.batch.operator_dtype).max * _HEADROOM))
        self._absorb([(index, rows / largest) for index, rows in blocks], width)
        return True

    def _absorb(self, blocks: list[tuple[int, Tensor]], width: int) -> None:
        """Send a sum of products forward, and what it has outside the basis back through every operator."""
        total = self.batch.apply_sum(blocks)
        if not bool(torch.isfinite(total).all()):
            return
        unit, first = safe_scale(total), not self.basis.shape[0]
        total = total * unit
        if first:
            self._hold(blocks, total, unit)
            if self.fault is not None:
                return
        threshold = rounding_of(self.eps, float(torch.linalg.matrix_norm(total)))
        block = dominant_rows(project_out(total, self.basis), width, threshold)
        block = complete_block(block, self.basis, width, self.generator)
        self.basis = torch.cat([self.basis, block])
        inside = self._probes @ block.T
        for index, product in enumerate(self._pulled(block)):
            if index in self.batch.nonfinite:
                continue
            product = product * self.scales[index]
            self._blocks[index].append(product)
            self._images[index] = self._images[index] - inside @ product
            known = product if first else torch.cat([self._leading[index], product])
            _, values, right = thin_svd(known)
            # More than k, so that what grows into the leading ones later is not lost.
            kept = 2 * self.options.k
            self._leading[index] = values[:kept, None] * right[:kept]
        if all(index in self.sound for index, _ in blocks):
            self._hold(blocks, total, unit)

    def _triplets(self, index: int) -> tuple[Tensor, Tensor]:
        _, values, right = thin_svd(self._leading[index])
        return values[: self.options.k], right[: self.options.k]

    def _pulled(self, rows: Tensor) -> list[Tensor]:
        """Apply every transpose to the same rows, a block of the width at a time."""
        passes = [self.batch.apply_shared(part) for part in rows.split(self.options.width)]
        return [torch.cat(parts) for parts in zip(*passes, strict=True)]

    def _hold(self, blocks: list[tuple[int, Tensor]], total: Tensor, unit: float) -> None:
        """Set ``fault`` where a sum of products contradicts the transposed ones, of all passes so far."""
        if not self._agrees(blocks, total, unit):
            self.fault = Status.NOT_ADJOINT if self._repeats(blocks, total, unit) else Status.NOT_DETERMINISTIC

    def _repeats(self, blocks: list[tuple[int, Tensor]], total: Tensor, unit: float) -> bool:
        """Whether the first row sent each way gives the same products once more."""
        bound = adjoint_bound(self.eps, max(max(shape) for shape in self.batch.shapes))
        again, inside = self._pulled(self._probes[:1]), self._probes[:1] @ self.basis.T
        pairs = []
        for index in self.sound:
            stored = self._images[index][:1]
            if len(self.basis):
                stored = stored + inside @ torch.cat(self._blocks[index])
            pairs.append((again[index] * self.scales[index], stored))
        pairs.append((self.batch.apply_sum([(index, rows[:1]) for index, rows in blocks]) * unit, total[:1]))
        return all(float((one - other).norm()) <= bound * float(other.norm()) for one, other in pairs)

    def _agrees(self, blocks: list[tuple[int, Tensor]], total: Tensor, unit: float) -> bool:
        """Whether ⟨Σ A_i x_i, u⟩ = Σ ⟨x_i, A_iᵀ u⟩ up to rounding, for u of the basis and what it leaves of the probes.

        The probes are taken at unit length: the rounding of what is left of them is then small beside the basis.
        """
        share = 1.0 / math.sqrt(self._probes.shape[1])
        left = torch.cat([self.basis, share * project_out(self._probes, self.basis)]).double()
        difference, size = total.double() @ left.T, 0.0
        lengths = [(float(total.norm()) / unit, total.numel())]
        for index, rows in blocks:
            # In float64: what brings operators of 1e30 and 1e-30 into one unit is no float32.
            rows = rows.double() * unit / self.scales[index]  # their ratio may be no float64
            known = torch.cat([*self._blocks[index], share * self._images[index]]).double()
            difference = difference - rows @ known.T
            size += float(torch.linalg.matrix_norm(rows) * torch.linalg.matrix_norm(known))
            lengths.append((float(known.norm()) / self.scales[index], known.numel()))
        eps = max(epsilon_at(self.batch.operator_dtype, *length) for length in lengths)
        bound = adjoint_bound(eps, max(max(shape) for shape in self.batch.shapes))
        if not len(self.basis):  # against the probes alone, whose many random products average rounding out
            bound = min(bound, LARGEST_ADJOINT_BOUND)
        return float(torch.linalg.matrix_norm(difference)) <= bound * size
