"""One tree of errors, each with a message that says what is wrong and how to mend it."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_MEMORY = ("out of memory", "outofmemory", "allocate memory", "not enough memory", "bad_alloc")
_DESCRIPTORS = ("too many open files",)


class DetjacError(Exception):
    """Base of every error this package raises on purpose."""


class InputError(DetjacError, ValueError):
    """An argument, prompt, token or option that cannot be used."""


class ModelError(DetjacError):
    """A model that cannot be found, loaded or trusted (missing package, corrupted or non-finite weights)."""


class UnsupportedModelError(ModelError):
    """A model whose family has no exact detached network here."""


class OperatorError(DetjacError):
    """A linear operator that breaks its contract: shape, dtype, device, finiteness."""


class RunFileError(DetjacError):
    """A file or folder of results that is missing, truncated, foreign or newer than this version."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def in_one_line(error: BaseException) -> str:
    """Return an error's whole message with its line breaks as blanks, or the name of its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def shortage_said(doing: str, kind: type[DetjacError]) -> Iterator[None]:
    """Raise ``kind`` where memory or file descriptors run out in the block, whatever has been made of that meanwhile.

    Libraries, and what takes any failure for damage, say something else of it; what they met is along their causes.

    Parameters
    ----------
    doing : str
        For the message: "read run.json".
    kind : type
        Of the error.
    """
    outside = sys.exception()  # being handled by who asks: no cause of anything in here
    try:
        yield
    except Exception as error:
        said = shortage(error, outside)
        if said is None:
            raise
        raise kind(f"cannot {doing}: {said}") from error


def shortage(error: BaseException, outside: BaseException | None = None) -> str | None:
    """Return what a process lacked as an error came up, and what to do; None where it lacked nothing.

    Parameters
    ----------
    error : BaseException
        With all that it was raised from, or while handling.
    outside : BaseException, optional
        Where the causes begin that are none.
    """
    met: BaseException | None = error
    while met is not None and met is not outside:
        text = str(met).lower() if not isinstance(met, DetjacError) else ""  # ours repeat their causes
        number = getattr(met, "errno", None)
        reason = in_one_line(met)[:200]
        if isinstance(met, MemoryError) or number == errno.ENOMEM or any(words in text for words in _MEMORY):
            return f"there is too little memory ({reason}); free some, or raise the limit of this process"
        if (
            number in (errno.EMFILE, errno.ENFILE)
            or any(words in text for words in _DESCRIPTORS)
            or (isinstance(met, FileNotFoundError) and _no_descriptor_is_left())
        ):
            return f"too many files are open ({reason}); close some, or raise the limit (ulimit -n)"
        met = met.__cause__ or met.__context__
    return None


def _no_descriptor_is_left() -> bool:
    """Tell whether files cannot be opened now: safetensors then says of each that it does not exist."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)
    return False
