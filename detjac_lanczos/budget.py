"""A budget of memory as people write it."""

from __future__ import annotations

import math
import re
from numbers import Integral

from detjac_lanczos.errors import InputError

Memory = float | str
"""A budget of memory: bytes, or a text such as "2GiB"."""


def read_memory(memory: Memory | None) -> int | None:
    """Return a budget in bytes from a whole number (1e9 is one), or a text such as "2GiB", "500 MB" or "1e9".

    Parameters
    ----------
    memory : int, float, str or None

    Returns
    -------
    int or None
        Bytes; None for None.

    Raises
    ------
    InputError
        If it is none of these, or not positive.
    """
    if memory is None:
        return None
    if isinstance(memory, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:e\d+)?)\s*(?:([kmgt])(i?))?(?:b|bytes)?\s*", memory.lower())
        if found:
            power = "kmgt".index(found[2]) + 1 if found[2] else 0
            size = float(found[1]) * (1024 if found[3] else 1000) ** power
            memory = int(size) if math.isfinite(size) else memory
    if isinstance(memory, float) and memory.is_integer():
        memory = int(memory)
    if isinstance(memory, bool) or not isinstance(memory, Integral) or memory <= 0:
        raise InputError(f"memory must be a number of bytes or a text such as '2GiB', not {memory!r}")
    return int(memory)


def format_bytes(count: int, *, up: bool = False) -> str:
    """Return bytes as a text that `read_memory` reads, such as "1.5GiB".

    Parameters
    ----------
    count : int
        Bytes.
    up : bool
        Round so that the text says no less.

    Returns
    -------
    str
    """
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count >= 1024**power:
            value = count / 1024**power
            return f"{int(value * 100 + 1) / 100 if up else round(value, 2):g}{unit}"
    return f"{count}B"
