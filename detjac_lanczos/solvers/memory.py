"""How many vectors the Lanczos bases of a batch may hold in a given memory."""

from collections.abc import Sequence

import numpy as np
import torch

from detjac_lanczos.errors import InputError
from detjac_lanczos.solvers.rounding import working_dtype
from detjac_lanczos.solvers.search import RESERVED_BLOCKS, SPARE_VECTORS


def basis_capacity(
    memory: object, shapes: Sequence[tuple[int, int]], dtype: torch.dtype, *, k: int, width: int, start: int
) -> int | None:
    """Return the most vectors of a side of each operator; None where memory is not bounded.

    A vector of each side and its products are d_out + d_in numbers each, in working precision; operators get equal
    parts.

    Parameters
    ----------
    memory : int or None
        Bytes for all bases of the batch together.
    start : int
        Columns to begin with; 0 for random ones.

    Raises
    ------
    InputError
        The memory holds no restarted basis for k triplets.
    """
    if memory is None:
        return None
    if not isinstance(memory, int | np.integer) or isinstance(memory, bool) or memory < 1:
        raise InputError(f"memory = {memory!r} is no number of bytes: give a whole number, or None")
    vector = 2 * max(d_out + d_in for d_out, d_in in shapes) * working_dtype(dtype).itemsize
    capacity = int(memory) // (len(shapes) * vector)
    least = max(k + SPARE_VECTORS, start) + (2 + RESERVED_BLOCKS) * width
    if capacity < least:
        raise InputError(
            f"memory = {memory} holds {capacity} vectors of each basis, and k = {k} needs {least}: give "
            f"{least * vector * len(shapes)} bytes or more"
        )
    return capacity
