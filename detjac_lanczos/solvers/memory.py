"""What a Lanczos search holds besides its operators, and how many vectors its bases may hold in a given memory."""

from collections.abc import Sequence

import torch

from detjac_lanczos.budget import Memory, read_memory
from detjac_lanczos.errors import InputError
from detjac_lanczos.solvers.basis import next_room
from detjac_lanczos.solvers.restart import least_capacity
from detjac_lanczos.solvers.rounding import working_dtype


def room_for(vectors: float, first: int) -> int:
    """Return the room of a basis that has grown to so many vectors from the first room."""
    room = first
    while room < vectors:
        room = next_room(room)
    return room


def searching_bytes(shape: tuple[int, int], dtype: torch.dtype, *, width: int, room: int, triplets: int) -> int:
    """Return the bytes of one operator's search while a pass runs: as `Search` and `Factorisation` allocate them.

    Parameters
    ----------
    shape : (int, int)
        (d_out, d_in) of the operator.
    dtype : torch.dtype
        Of the operator.
    width : int
    room : int
        Of each basis.
    triplets : int
        Ritz triplets, guards included: they are held with their products and residuals.
    """
    pair, item = sum(shape), working_dtype(dtype).itemsize
    stored = 2 * room + 3 * triplets
    sent = dtype.itemsize * (1 if dtype.itemsize == item else 2)
    return stored * pair * item + width * max(shape) * (item + sent)


def judging_bytes(shape: tuple[int, int], dtype: torch.dtype, *, width: int, triplets: int) -> int:
    """Return the bytes that choosing the next block of one search takes: weighted residuals, and what QR makes of them.

    As `Search.prepare` does.
    """
    return (3 * triplets + 2 * width) * max(shape) * working_dtype(dtype).itemsize


def finishing_bytes(shape: tuple[int, int], dtype: torch.dtype, k: int, triplets: int) -> int:
    """Return the bytes that a result is made in, once its search is gone: triplets, and residuals in float64.

    As `finish` does: one side at a time, its vectors and products; then both residuals, one of them once more for its
    norm; a few matrices of k × k. The vectors of the result come last.
    """
    found = 2 * triplets * sum(shape) * working_dtype(dtype).itemsize
    return found + max(8 * k * (sum(shape) + max(shape) + 8 * k), result_bytes(shape, dtype, k))


def result_bytes(shape: tuple[int, int], dtype: torch.dtype, k: int) -> int:
    """Return the bytes of the vectors of one result."""
    return k * sum(shape) * working_dtype(dtype).itemsize


def basis_capacity(
    memory: Memory | None, shapes: Sequence[tuple[int, int]], dtype: torch.dtype, *, k: int, width: int, start: int
) -> int | None:
    """Return the most vectors of a side of each operator; None where memory is not bounded.

    A vector of each side and its products are d_out + d_in numbers each, in working precision; operators get equal
    parts.

    Parameters
    ----------
    memory : int, float, str or None
        Bytes for all bases of the batch together, or a text such as "2GiB".
    start : int
        Columns to begin with; 0 for random ones.

    Raises
    ------
    InputError
        The memory is none, or holds no restarted basis for k triplets.
    """
    budget = read_memory(memory)
    if budget is None:
        return None
    vector = 2 * max(d_out + d_in for d_out, d_in in shapes) * working_dtype(dtype).itemsize
    capacity = budget // (len(shapes) * vector)
    least = least_capacity(k, width, start)
    if capacity < least:
        needing = f"k = {k}" if least == least_capacity(k, width, 0) else f"a start of {start} columns"
        raise InputError(
            f"memory = {memory} holds {capacity} vectors of each basis, and {needing} needs {least}: give "
            f"{least * vector * len(shapes)} bytes or more"
        )
    return capacity
