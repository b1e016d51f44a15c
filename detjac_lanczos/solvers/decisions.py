"""What an earlier solve decided by timing, read back: what a call asks for itself goes first."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from detjac_lanczos.errors import InputError
from detjac_lanczos.solvers.options import DEFAULT_WIDTH, check_block

PRICES = ("seconds_per_pass", "seconds_per_row", "svd_seconds", "seconds_per_work")
_NAMES = ("method", "block", "first_block", "polish", *PRICES)
"""What a solve, or the polish of a survey, may decide by timing, by the names in ``SVDResult.choices``."""


@dataclass(frozen=True)
class Decisions:
    """How a solve is to go, by what was asked for or decided before.

    Attributes
    ----------
    given : dict
        ``choices`` of the earlier solve, as plain data.
    method : str
        "auto" where it is still to be chosen.
    block, first_block : int or None
        Width of the blocks, and of the first one each way where that is another one.
    """

    given: dict[str, Any]
    method: str
    block: int | None
    first_block: int | None

    @classmethod
    def of(cls, choices: Any, *, method: str, block: int | None, bounded: bool) -> "Decisions":
        """Return what to go by: choices count where ``method`` is "auto", and where no ``block`` is asked for.

        Parameters
        ----------
        choices : dict or None
        bounded : bool
            Memory is, which "auto" leaves to Lanczos.

        Raises
        ------
        InputError
            ``choices`` are none of an earlier solve.
        """
        given = _read(choices)
        if method == "auto":
            method = given.get("method", "lanczos" if bounded else "auto")
        if block is not None:
            return cls(given, method, block, None)
        check_block("first_block", given.get("first_block"))
        return cls(given, method, given.get("block"), given.get("first_block"))

    @property
    def width(self) -> int:
        """Of the first block each way."""
        return int(self.first_block or self.block or DEFAULT_WIDTH)

    @property
    def later(self) -> int | None:
        """Width of the blocks after it, where that was decided."""
        return None if self.first_block is None or self.block is None else int(self.block)


def _read(choices: Any) -> dict[str, Any]:
    """Return choices as plain data."""
    given = choices or {}
    if not isinstance(given, dict):
        raise InputError(f"choices = {choices!r} are none of an earlier solve: give SVDResult.choices, or None")
    if unknown := [str(key) for key in given if key not in _NAMES]:
        raise InputError(f"choices hold {', '.join(unknown)}, which no solve decides: give SVDResult.choices as it was")
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in given.items()}
