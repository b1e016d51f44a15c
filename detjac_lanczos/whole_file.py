"""Paths as users give them, and files that are whole or absent: written beside their place, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from detjac_lanczos.errors import InputError

_WORK = ".detjac-"


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
    """Give a name to write to, in a folder beside ``path``; once on the disk it is renamed, if the block ends well.

    If not, what was at ``path`` is still there, and nothing is left beside it.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    with work_folder(path.parent, path.name) as work:
        beside = work / path.name
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    sweep(path.parent, path.name)


@contextmanager
def work_folder(place: Path, name: str) -> Iterator[Path]:
    """Give an empty hidden folder in ``place`` to make ``name`` in, or of; it vanishes with what is left in it.

    Raises
    ------
    OSError
        If it cannot be made.
    """
    while True:
        work = new_work_name(place, name)
        work.mkdir()
        try:
            with locked(work, wait=True):
                if work.exists():  # else swept away before it was locked
                    yield work
                    return
        finally:
            with interrupts_wait():
                shutil.rmtree(work, ignore_errors=True)


def sweep(place: Path, name: str) -> None:
    """Delete the work folders of killed processes, for when ``name`` stands: they may hold what was there before."""
    with suppress(OSError):
        for left in [path for path in place.iterdir() if is_work_folder(path, name)]:
            with locked(left) as held:
                if held:
                    shutil.rmtree(left, ignore_errors=True)


def new_work_name(place: Path, name: str) -> Path:
    """Return what no work folder for ``name`` is called yet."""
    return place / f".{name}{_WORK}{secrets.token_hex(4)}"


def is_work_folder(path: Path, name: str) -> bool:
    """Whether this is a folder of `work_folder` for ``name``."""
    return path.name.startswith(f".{name}{_WORK}") and path.is_dir() and not path.is_symlink()


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait until the block is done: what stops the clearing up leaves what it was to clear."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted: list[int] = []
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in usual.items():
        if handler is not None:  # set outside Python: nothing could set it again
            signal.signal(number, lambda number, _: noted.append(number))
    try:
        yield
    finally:
        for number, handler in usual.items():
            if handler is not None:
                signal.signal(number, handler)
    if noted:
        signal.raise_signal(noted[0])


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Keep a folder from being swept away, this process being alive; tell whether: not all file systems have locks."""
    with ExitStack() as stack:
        held = False
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            import fcntl  # there is none where folders cannot be opened

            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = True
        yield held
