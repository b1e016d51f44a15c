"""Paths as users give them, and files that are whole or absent: written beside their place, then renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from detjac_lanczos.errors import InputError


def as_path(place: Any) -> Path:
    """Return a path, a user's home still unread.

    Raises
    ------
    InputError
        If it is neither a string nor a path.
    """
    if not isinstance(place, str | os.PathLike):
        raise InputError(f"{place!r} names no file or folder; give a path")
    return Path(place)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a name beside ``path`` to write to; once on the disk it is renamed, if the block ends well.

    If not, what was at ``path`` is still there, and nothing is left beside it.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        with suppress(OSError, ValueError):  # there is none, or what forbids to write forbids this, too
            beside.unlink()
