"""Whether memory holds the matrices of a batch, asked before any of them is written out."""

import math
from collections.abc import Sequence
from contextlib import suppress

import psutil
import torch

from detjac_lanczos.budget import format_bytes
from detjac_lanczos.errors import InputError

_COPIES = 3
"""What the SVD of a matrix holds beside it, in matrices: one that is scaled, the one that LAPACK works in, and the
longer singular vectors."""

_SQUARES = 5
"""What it holds in squares of the shorter side: the shorter singular vectors, three of divide and conquer, and the
triangle that a tall or wide matrix is reduced to.

Measured on the CPU in float32 and float64, 250 to 2,500 short, beside the scaled one: 6.1 to 6.3 matrices for a square
one, where these make 7; 4.2 to 4.8 for 1 : 2, where they make 4.5; 2.0 to 2.5 for 1 : 80, where they make 2.1.

Not counted: where many triplets are kept, or some are zeros and cleaned, all that is beside the matrix came to up to
2.8 times as much for a moment (8,000 × 800 of rank 20, every triplet kept).
"""


def shortage(shapes: Sequence[tuple[int, int]], dtype: torch.dtype, device: torch.device, *, decomposed: bool) -> str:
    """Return what memory lacks to hold all matrices, empty where it lacks nothing or cannot be asked.

    Parameters
    ----------
    shapes : sequence of (d_out, d_in)
    dtype : torch.dtype
        Working precision.
    device : torch.device
    decomposed : bool
        An SVD is taken of one after the other.
    """
    sizes = [math.prod(shape) * dtype.itemsize for shape in shapes]
    needed = sum(sizes) + (max(map(_beside, shapes)) * dtype.itemsize if decomposed else 0)
    free = _free_bytes(device)
    if free is None or (needed <= free and (device.type != "cpu" or _is_granted(needed))):
        return ""
    what = "the matrix" if len(sizes) == 1 else f"{len(sizes)} matrices"
    known = f"{free:,} are free" if needed > free else "this process is not granted as many"
    return f"writing out {what} takes {needed:,} bytes ({format_bytes(needed)}), and {known}"


def require_room(
    shapes: Sequence[tuple[int, int]],
    dtype: torch.dtype,
    device: torch.device,
    *,
    decomposed: bool,
    journaled: bool = False,
) -> None:
    """Raise :class:`InputError` where memory does not hold all matrices; see :func:`shortage`.

    A search that is ``journaled`` repeats its options: another method takes another folder.
    """
    if lacking := shortage(shapes, dtype, device, decomposed=decomposed):
        other = "free some, or choose method 'lanczos' and a new checkpoint" if journaled else "choose method 'lanczos'"
        raise InputError(f"{lacking}: {other if decomposed else 'leave out exact=True'}")


def _beside(shape: tuple[int, int]) -> int:
    """Return how many numbers the SVD of a matrix holds beside it."""
    return _COPIES * math.prod(shape) + _SQUARES * min(shape) ** 2


def _free_bytes(device: torch.device) -> int | None:
    """Return the bytes that are free on a device, those that torch holds in reserve included; None where not known."""
    if device.type == "cpu":
        with suppress(OSError):  # a file is read for it, and descriptors may have run out
            return int(psutil.virtual_memory().available)
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reserve
    return None


def _is_granted(count: int) -> bool:
    """Whether the allocator grants so many bytes, under a limit of the process say; none of them is touched."""
    try:
        torch.empty(count, dtype=torch.uint8, device="cpu")
    except RuntimeError:
        return False
    return True
