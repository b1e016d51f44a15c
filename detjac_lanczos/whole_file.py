"""Paths as users give them, and files that are whole or absent: written beside their place, then renamed."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from detjac_lanczos.errors import InputError, RunFileError, first_line

_WORK = ".detjac-"
_LONGEST = 255  # bytes of a name
_STALE = 3600.0  # seconds


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


def require_opened(path: Path) -> None:
    """Raise what keeps a file that is there from being opened: safetensors says of any such that it is not there.

    Raises
    ------
    OSError
        If it cannot be opened.
    """
    if os.path.exists(path):  # unlike Path's own, no error for a name that is too long
        with path.open("rb"):
            pass


def unreadable(path: Path, error: OSError | RuntimeError) -> RunFileError:
    """Return the error for a file that may well be whole, but cannot be read."""
    reason = getattr(error, "strerror", None) or first_line(error)
    return RunFileError(f"cannot read {path} ({reason}); give a file that can be read")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a name to write to, in a folder beside ``path``; once on the disk it is renamed, if the block ends well.

    If not, what was at ``path`` is still there, and nothing is left beside it. A process that is killed leaves its
    hidden folder, as may an interrupt just when that is made or about to be cleared up. It may be deleted; a later save
    does so where `sweep` knows it.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    with work_folder(path.parent, path.name) as work:
        mode = stat.S_IMODE(work.stat().st_mode)
        if mode & stat.S_IRWXU != stat.S_IRWXU:  # the umask is for the file
            work.chmod(mode | stat.S_IRWXU)
        beside = work / path.name
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    sweep(path.parent, path.name, lambda left: holds_file(left, path.name))


@contextmanager
def parents_made(path: Path) -> Iterator[None]:
    """Make the folders that ``path`` lies in; those that were missing go again if the block fails, if still empty.

    Raises
    ------
    OSError
        If they cannot be made.
    """
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with interrupts_wait():
            for parent in made:
                with suppress(OSError):
                    parent.rmdir()
        raise


@contextmanager
def work_folder(place: Path, name: str) -> Iterator[Path]:
    """Give an empty hidden folder in ``place`` to make ``name`` in, or of; it vanishes with what is left in it.

    Raises
    ------
    OSError
        If it cannot be made.
    """
    work = new_work_name(place, name)
    work.mkdir()
    try:
        with locked(work):
            yield work
    finally:
        with interrupts_wait():
            _delete(work)


def _delete(work: Path) -> None:
    """Delete a work folder, also where descriptors run out: rmtree takes several, a walk one, an empty one none."""
    shutil.rmtree(work, ignore_errors=True)
    with suppress(OSError):
        for folder, _, files in os.walk(work, topdown=False):
            for file in files:
                Path(folder, file).unlink()
            Path(folder).rmdir()
    with suppress(OSError):
        work.rmdir()


def sweep(place: Path, name: str, is_ours: Callable[[Path], bool]) -> None:
    """Delete work folders of killed processes, for when ``name`` stands: they may hold what was there before.

    One goes only if it and all in it are this user's and unchanged for an hour (locks may be each host's own), if
    nobody holds it, and if ``is_ours`` says that it holds nothing but what is made of ``name``.
    """
    with suppress(OSError):
        for left in [path for path in place.iterdir() if is_work_folder(path, name) and _is_stale(path)]:
            with locked(left) as held:
                if held and is_ours(left):
                    shutil.rmtree(left, ignore_errors=True)


def new_work_name(place: Path, name: str) -> Path:
    """Return what no work folder for ``name`` is called yet."""
    return place / f"{_prefix(name)}{secrets.token_hex(4)}"


def is_work_folder(path: Path, name: str) -> bool:
    """Whether this is called like a folder of `work_folder` for ``name``, and is a folder."""
    named = re.fullmatch(re.escape(_prefix(name)) + "[0-9a-f]{8}", path.name)
    return named is not None and path.is_dir() and not path.is_symlink()


def holds_file(folder: Path, name: str) -> bool:
    """Whether a folder holds nothing but a file of this name."""
    return all(path.name == name and path.is_file() and not path.is_symlink() for path in folder.iterdir())


def _prefix(name: str) -> str:
    encoded = os.fsencode(name)
    if len(encoded) <= _LONGEST < len(encoded) + len(f".{_WORK}") + 8:  # a file can have it, its work folder cannot
        name = hashlib.sha256(encoded).hexdigest()
    return f".{name}{_WORK}"


def _is_stale(folder: Path) -> bool:
    user = os.geteuid() if hasattr(os, "geteuid") else None  # without users nothing is known to be this one's
    found = [place.lstat() for place in (folder, *folder.rglob("*"))]
    return all(one.st_uid == user and one.st_ctime < time.time() - _STALE for one in found)


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait until the block is done: what stops the clearing up leaves what it was to clear.

    Where an error keeps a usual handler from being set again, the first signal that comes does that, and goes to it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted: list[int] = []
    usual: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    waits = True

    def note(number: int, _: Any) -> None:
        if waits:
            noted.append(number)
        else:
            signal.signal(number, usual[number])
            signal.raise_signal(number)

    try:
        for number, handler in usual.items():
            if handler is not None:  # set outside Python: nothing could set it again
                signal.signal(number, note)
        yield
    finally:
        waits = False
        for number, handler in usual.items():
            if handler is not None:
                signal.signal(number, handler)
    if noted:
        signal.raise_signal(noted[0])


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Keep a folder from being swept away, this process being alive; tell whether: not all file systems have locks."""
    with ExitStack() as stack:
        held = False
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            import fcntl  # there is none where folders cannot be opened

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        yield held
