"""Measure given triplets afresh: one pass each way, and the certificate that follows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detjac_lanczos.by_value import sent_by_value
from detjac_lanczos.errors import InputError
from detjac_lanczos.solvers.batch import as_batch
from detjac_lanczos.solvers.certificate import Certificate, certify_triplets
from detjac_lanczos.solvers.counting import CountingBatch
from detjac_lanczos.solvers.operator import Direction
from detjac_lanczos.solvers.options import check_tol, is_whole
from detjac_lanczos.solvers.residuals import relative_residuals
from detjac_lanczos.solvers.wording import rounded_up


@sent_by_value()
@dataclass(frozen=True, eq=False, repr=False)
class Measurement:
    """What one fresh pass each way says about stored triplets of one operator.

    Attributes
    ----------
    residuals : Tensor, shape (k, 2), float64
        ρ_R = ‖A v - σ u‖ and ρ_L = ‖Aᵀ u - σ v‖, absolute.
    relative : Tensor, shape (k, 2), float64
        Divided by σ_j, and by σ_1 where σ_j is under the floor.
    certificate : Certificate
    rounding : float
        c ε √passes times the longest product: what residuals of a second measurement may differ by. Where σ_1 was
        found that is the certificate's floor; products of a search cut short may be much longer than its s_1.
    """

    residuals: Tensor
    relative: Tensor
    certificate: Certificate
    rounding: float

    def __repr__(self) -> str:
        """Return one line: the largest relative residual of either side, and what is claimed."""
        right, left = map(rounded_up, self.relative.amax(dim=0).tolist())
        return f"Measurement(relative residuals ≤ {right} and {left}, {self.certificate.line})"


def measure_triplets(A: Any, U: Any, S: Any, V: Any, *, tol: float = 1e-3, passes: int = 2) -> list[Measurement]:
    """Recompute residuals, orthonormality and adjointness of triplets, with one pass each way.

    Parameters
    ----------
    A : operator, or batch of operators
    U, S, V : Tensor or ndarray, or a sequence of them, one for each operator
        Shapes (d_out, k), (k,) and (d_in, k), real; no value of S negative, in any order. Of vectors that are not
        orthonormal nothing is claimed.
    tol : float
        What max(ρ_R, ρ_L) / σ_j of a claimed triplet must meet, between 0 and 1.
    passes : int
        Passes of the solve that found them, for the noise floor.

    Returns
    -------
    list of Measurement
        One for each operator.

    Raises
    ------
    InputError
        The triplets do not fit the operators, or hold NaN or negative values; ``tol`` or ``passes`` is none.
    OperatorError
        A product is not finite, or has the wrong shape, dtype or device.
    """
    check_tol(tol)
    if not is_whole(passes) or passes < 0:
        raise InputError(f"passes = {passes!r} counts no passes: give a whole number of 0 or more")
    batch = CountingBatch(as_batch(A))
    lefts, values, rights = (_as_tensors(name, blocks) for name, blocks in (("U", U), ("S", S), ("V", V)))
    _check_fit(batch.shapes, lefts, values, rights)
    with torch.no_grad(), torch.autocast(batch.device.type, enabled=False):
        pushed = batch.finite(batch.apply(Direction.FORWARD, _as_blocks(batch, rights)))
        pulled = batch.finite(batch.apply(Direction.TRANSPOSED, _as_blocks(batch, lefts)))
    measurements = []
    for index, (left, sigma, right, av, atu) in enumerate(zip(lefts, values, rights, pushed, pulled, strict=True)):
        left, sigma, right = (block.to(device=batch.device) for block in (left, sigma, right))
        first = float(sigma.max())
        floor = batch.floor(index, first, passes)
        under = bool((sigma <= floor).any())
        residuals, certificate = certify_triplets(
            left, sigma, right, av.T, atu.T, tol=tol, floor=floor, exact=under, least=batch.lost(index, first)
        )
        longest = max(first, *(float(product.double().norm(dim=1).max()) for product in (av, atu)))
        rounding = batch.floor(index, longest, passes)
        relative = relative_residuals(residuals, sigma, floor, first)
        measurements.append(Measurement(residuals, relative, certificate, rounding))
    return measurements


def _as_tensors(name: str, blocks: Any) -> list[Tensor]:
    if isinstance(blocks, Tensor | np.ndarray):
        blocks = [blocks]
    if not isinstance(blocks, Iterable):
        raise InputError(f"{name} is a {type(blocks).__name__}: give a tensor, or a list with one for each operator")
    return [_as_tensor(f"{name} of operator {index}", block) for index, block in enumerate(blocks)]


def _as_tensor(name: str, block: Any) -> Tensor:
    if isinstance(block, np.ndarray) and block.dtype.kind in "iuf":
        block = torch.from_numpy(block.astype(np.float64))
    wanted = "give a dense tensor or array of real numbers, floating point ones of 16 bits or more"
    if not isinstance(block, Tensor):
        raise InputError(f"{name} is a {type(block).__name__}: {wanted}")
    tiny = block.is_floating_point() and block.dtype.itemsize < 2
    if tiny or block.is_complex() or block.layout is not torch.strided or block.is_meta:
        raise InputError(f"{name} is {block.dtype}, {block.layout}, on {block.device}: {wanted}")
    return block


def _as_blocks(batch: CountingBatch, vectors: Sequence[Tensor]) -> list[tuple[int, Tensor]]:
    return [(index, block.to(device=batch.device, dtype=batch.dtype).T) for index, block in enumerate(vectors)]


def _check_fit(
    shapes: Sequence[tuple[int, int]], lefts: Sequence[Tensor], values: Sequence[Tensor], rights: Sequence[Tensor]
) -> None:
    if not len(lefts) == len(values) == len(rights) == len(shapes):
        raise InputError(
            f"{len(shapes)} operators need as many triplets: got {len(lefts)} U, {len(values)} S and {len(rights)} V"
        )
    for index, ((d_out, d_in), left, sigma, right) in enumerate(zip(shapes, lefts, values, rights, strict=True)):
        k = sigma.numel()
        if tuple(left.shape) != (d_out, k) or tuple(sigma.shape) != (k,) or tuple(right.shape) != (d_in, k) or k == 0:
            raise InputError(
                f"triplets {index} have U {tuple(left.shape)}, S {tuple(sigma.shape)}, V {tuple(right.shape)}: "
                f"this operator needs ({d_out}, k), (k,) and ({d_in}, k)"
            )
        if not all(bool(torch.isfinite(block).all()) for block in (left, sigma, right)):
            raise InputError(f"triplets {index} hold NaN or infinite values: they were not found or not saved whole")
        if bool((sigma < 0).any()):
            raise InputError(
                f"triplets {index} hold negative values: turn their signs in S, and those of the columns of U"
            )
