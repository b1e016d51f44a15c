"""When a basis is full: how many vectors a restart keeps, and the fewest that a basis must hold for one."""

from detjac_lanczos.solvers import copies
from detjac_lanczos.solvers.completeness import GUARDS

SPARE_VECTORS = GUARDS + 1
"""Ritz vectors beyond those wanted that a restart keeps: the guards of a claim, and one that shows what they leave."""

_RESERVED_BLOCKS = copies.PASSES // 2 + 1
"""Blocks of a side that may follow one another without a restart: those of a probe, and the one before it."""


def least_capacity(wanted: int, width: int, start: int) -> int:
    """Return the fewest vectors of a side with which a search for so many triplets can go on.

    Parameters
    ----------
    wanted : int
    width : int
        Of its blocks.
    start : int
        Vectors that it begins with.
    """
    return max(wanted + SPARE_VECTORS, start) + (2 + _RESERVED_BLOCKS) * width


def vectors_to_keep(capacity: int, fullest: int, wanted: int, width: int) -> int | None:
    """Return how many Ritz vectors a restart keeps; None where the next blocks, those of a probe included, still fit.

    Parameters
    ----------
    capacity : int
        The most vectors of a side.
    fullest : int
        Vectors of the side that holds more.
    wanted, width : int
        As in :func:`least_capacity`.
    """
    reserve = _RESERVED_BLOCKS * width
    return max(wanted + SPARE_VECTORS, (capacity - reserve) // 2) if fullest + reserve > capacity else None
