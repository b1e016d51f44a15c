"""What a process shares with its terminal: interrupts, and streams that may be closed, full or in another encoding."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from detjac_lanczos.errors import InputError


@contextmanager
def noted_interrupts() -> Iterator[list[int]]:
    """Give a list of the interrupts so far: some libraries turn one that hits their import into another error."""
    noted: list[int] = []
    usual = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        signal.default_int_handler(number, frame)

    ours = usual is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        if ours:
            signal.signal(signal.SIGINT, usual)


def mend_streams() -> None:
    """Let no character stop the output: what the terminal's encoding lacks is replaced; lost errors hurt nobody."""
    if sys.stderr is None:
        sys.stderr = io.StringIO()
    if sys.stdout is None:
        raise InputError("standard output is closed; leave it open, the result goes there")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def show(result: object) -> None:
    """Print a result on standard output, now, so that an output that cannot take it is an error and no afterthought.

    One whose reader has left, like ``head``, has seen what it wanted.
    """
    try:
        print(result, flush=True)
    except OSError as error:
        with suppress(OSError):  # what is left in the buffer would be tried, and fail, again when the program ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return
        raise InputError(
            f"standard output cannot be written ({error.strerror or error}); send the result elsewhere"
        ) from error
