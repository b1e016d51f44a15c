"""What a process shares with its terminal: interrupts, streams (closed, full, in another encoding), and its end.

What was raised ends it as one line on standard error, and an exit code.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TextIO, cast

from detjac_lanczos.errors import DetjacError, InputError, in_one_line

BAD_INPUT = 2
_SIGNALLED = 128
_ENDED = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Interrupts:
    """Which there was: Python drops one that hits a finalizer, a library's import makes it another error.

    Attributes
    ----------
    noted : int or None
        SIGINT (Ctrl-C), or SIGTERM (``timeout``, schedulers, ``docker stop``), the last of them.
    """

    def __init__(self) -> None:
        self.noted: int | None = None

    def check(self) -> None:
        """Raise again what was dropped."""
        if self.noted is not None:
            raise KeyboardInterrupt


@contextmanager
def noted_interrupts() -> Iterator[Interrupts]:
    """Note interrupts; one that Python drops is not shown as ignored, it is still to be raised by a check.

    A signal that someone else handles, or that is ignored, stays theirs.
    """
    interrupts = Interrupts()
    usual_hook = sys.unraisablehook

    def note(number: int, frame: FrameType | None) -> None:
        interrupts.noted = number
        signal.default_int_handler(number, frame)

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            usual_hook(dropped)

    usual: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    main = threading.current_thread() is threading.main_thread()
    ours = [number for number, handler in usual.items() if main and signal.getsignal(number) is handler]
    if ours:
        sys.unraisablehook = hook
    for number in ours:
        signal.signal(number, note)
    try:
        yield interrupts
    finally:
        for number in ours:
            signal.signal(number, usual[number])
        if ours:
            sys.unraisablehook = usual_hook


class Lenient:
    """A stream whose losses hurt nobody: what it cannot write is dropped.

    Parameters
    ----------
    stream : text stream
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        """Return what the stream has."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write what can be written."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def isatty(self) -> bool:
        """Whether it is a terminal; what is closed, or cannot tell, is none."""
        with suppress(AttributeError, ValueError):
            return bool(self._stream.isatty())
        return False

    def flush(self) -> None:
        """Flush what can be flushed."""
        with suppress(OSError):
            self._stream.flush()


@contextmanager
def mended_streams() -> Iterator[None]:
    """Let no character stop the output: what the terminal's encoding lacks is replaced; lost errors hurt nobody."""
    usual = sys.stderr
    changed = [stream for stream in (sys.stdout, usual) if isinstance(stream, io.TextIOWrapper)]
    errors = [stream.errors for stream in changed]
    for stream in changed:
        stream.reconfigure(errors="replace")
    sys.stderr = cast(TextIO, Lenient(io.StringIO() if usual is None else usual))
    try:
        yield
    finally:
        with suppress(OSError):  # what is left of a full one would be tried, and fail, again when the program ends
            for stream, kept in zip(changed, errors, strict=True):
                stream.reconfigure(errors=kept)
            sys.stderr = usual


def exit_code(run: Callable[[Interrupts], int], *, verbose: Callable[[], bool] = lambda: False) -> int:
    """Run something that gives an exit code; return it, or that of the error or interrupt that ended it."""
    with noted_interrupts() as interrupts, mended_streams():
        try:
            if sys.stdout is None:
                raise InputError("standard output is closed; leave it open, the result goes there")
            code = run(interrupts)
            interrupts.check()
            return code
        except DetjacError as error:
            if verbose():
                traceback.print_exc()
            print(f"detjac: {in_one_line(error)}", file=sys.stderr)
            return BAD_INPUT
        except (Exception, KeyboardInterrupt) as error:
            if interrupts.noted is None and not isinstance(error, KeyboardInterrupt):
                raise
            number = signal.Signals(interrupts.noted or signal.SIGINT)
            print(f"detjac: {_ENDED[number]}", file=sys.stderr)
            return _SIGNALLED + number


def output_width(otherwise: int) -> int:
    """Return the columns of the terminal that standard output is; where it is none, ``otherwise``."""
    return shutil.get_terminal_size((otherwise, 0)).columns if sys.stdout.isatty() else otherwise


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
