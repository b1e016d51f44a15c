"""The dense road: every row of the matrix by shared cotangents, then an ordinary SVD of each operator."""

import torch
from torch import Tensor

from detjac_lanczos.solvers.counting import CountingBatch, Direction
from detjac_lanczos.solvers.finish import Found, Road, finish
from detjac_lanczos.solvers.options import Options
from detjac_lanczos.solvers.result import Status, SVDResult
from detjac_lanczos.solvers.rounding import safe_scale

_CHUNK_ROWS = 1024


def solve_dense(batch: CountingBatch, options: Options, road: Road, *, certify: bool) -> list[SVDResult]:
    """Write out every matrix, take its SVD, and measure the leading triplets on the matrix."""
    results = []
    for index, matrix in enumerate(materialise(batch)):
        found = None if index in batch.nonfinite else _leading(matrix, options.k)
        status = Status.NOT_FINITE if found is None else Status.CONVERGED
        results.append(finish(batch, index, found, status, road, options, seconds=batch.seconds, certify=certify))
    return results


def materialise(batch: CountingBatch) -> list[Tensor]:
    """Return every operator as a matrix ``(d_out, d_in)`` in working precision, by rows of the transpose."""
    matrices = [torch.empty(shape, dtype=batch.dtype, device=batch.device) for shape in batch.shapes]
    shared = len({d_out for d_out, _ in batch.shapes}) == 1
    groups = [list(range(len(batch)))] if shared else [[index] for index in range(len(batch))]
    for group in groups:
        d_out = batch.shapes[group[0]][0]
        width = chunk_width(batch.shared_cost if shared else batch.costs[group[0]], d_out)
        for start in range(0, d_out, width):
            stop = min(start + width, d_out)
            rows = torch.zeros(stop - start, d_out, dtype=batch.dtype, device=batch.device)
            rows[:, start:stop].fill_diagonal_(1.0)
            products = batch.apply_shared(rows) if shared else batch.apply(Direction.TRANSPOSED, [(group[0], rows)])
            for index, product in zip(group, products, strict=True):
                matrices[index][start:stop] = product
    return matrices


def chunk_width(cost: float, d_out: int) -> int:
    """Return how many columns to send at once: about a thousand rows, in chunks of one size."""
    at_most = max(1, min(d_out, round(_CHUNK_ROWS / max(cost, 1e-9))))
    return -(-d_out // -(-d_out // at_most))


def _leading(matrix: Tensor, k: int) -> Found:
    scale = safe_scale(matrix)
    matrix = matrix * scale
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    u, v = left[:, :k].T, right[:k]
    return Found(values[:k], u, v, v @ matrix.T, u @ matrix, scale)
