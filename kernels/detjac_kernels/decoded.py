"""GEMM in both directions with a matrix that is decoded some rows at a time, never whole."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from detjac_kernels import roads
from detjac_kernels.scratch import scratch

CHUNK = 1 << 20
"""Weights decoded at a time: 4 MiB in float32."""

Decode = Callable[[range, torch.dtype], Tensor]
"""Rows of a matrix in a dtype, (len(rows), d); the next call may overwrite them."""


def product(x: Tensor, decode: Decode, runs: Sequence[range]) -> Tensor:
    """Return ``x Wᵀ``, a tensor of its own: (R, d) to (R, f). The rows of W are those in ``runs``, in order."""
    out = x.new_empty(x.shape[0], sum(map(len, runs)))
    for columns, rows in _pieces(runs, *x.shape):
        out[:, columns] = roads.product(x, decode(rows, x.dtype))
    return out


def product_transposed(y: Tensor, decode: Decode, runs: Sequence[range], width: int) -> Tensor:
    """Return ``y W``, a tensor of its own: (R, f) to (R, d), with ``width`` d.

    The products of the parts are summed in at least float32, and the sum is rounded once. Those of half-precision parts
    are rounded before, too: √2 times the error of one rounding, however many there are. Made in float32 they would not
    be, but on a CPU bfloat16 rows would take 1.4 (28 rows) to 1.8 times (112) as long; float16 rows are quicker so.
    """
    total = y.new_zeros(y.shape[0], width, dtype=torch.promote_types(y.dtype, torch.float32))
    for columns, rows in _pieces(runs, y.shape[0], width):
        _add(total, y[:, columns], decode(rows, y.dtype))
    return total.to(y.dtype)


def _add(total: Tensor, y: Tensor, part: Tensor) -> None:
    """Add ``y W`` of a part, which may be overwritten: (R, p) and (p, d)."""
    if y.is_cpu and y.dtype is torch.float16:  # many CPUs multiply it number by number, 50 to 100 times slower
        wide = scratch("decoded", part.numel(), torch.float32, part.device).view(part.shape)
        total.addmm_(y.float(), wide.copy_(part))
    else:
        total += roads.product(y, part.t())


def _pieces(runs: Sequence[range], count: int, width: int) -> Iterator[tuple[slice, range]]:
    """Cut runs into parts of about `CHUNK` values, at least one row each; none where there are no rows to multiply."""
    start = 0
    for run in filter(None, runs) if count else ():
        parts = _parts(len(run), width)
        ends = [len(run) * i // parts for i in range(parts + 1)]
        for a, b in pairwise(ends):
            yield slice(start + a, start + b), run[a:b]
        start += len(run)


def scratch_bytes(rows: int, width: int, itemsize: int, *, coded: bool) -> int:
    """Return the bytes that a matrix (rows, width) passes through, for rows of ``itemsize`` bytes a number.

    A part of it in float32, and once more in another precision; ``coded`` ones also have their pairs of codes as int32,
    and the scales of a part in the six steps in which scales of 64 values are decoded.
    """
    values = rows_decoded_at_once(rows, width) * width
    converted = 0 if itemsize == 4 else itemsize * values
    return 4 * values + converted + (2 * values + 6 * 4 * values // 64 if coded else 0)


def rows_decoded_at_once(rows: int, width: int) -> int:
    """Return how many rows of a matrix (rows, width) are decoded at a time, at most."""
    return -(-rows // _parts(rows, width))


def _parts(rows: int, width: int) -> int:
    return max(1, min(rows, -(-rows * width // CHUNK)))
