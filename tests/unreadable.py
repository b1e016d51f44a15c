"""What keeps a file that is whole from being read or written now, and what is then said of it."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

UNREADABLE = [
    (OSError(errno.EMFILE, "Too many open files"), "too many files are open"),
    (RuntimeError("unable to open file <a> in read-only mode: Too many open files (24)"), "too many files are open"),
    (RuntimeError("unable to mmap 9 bytes from file <a>: Cannot allocate memory (12)"), "too little memory"),
    (MemoryError(), "too little memory"),
    (OSError(errno.EIO, "Input/output error"), r"\(Input/output error\); give a file that can be read"),
    (RuntimeError("unable to mmap: No such device (19)"), r"\(unable to mmap.*\); give a file that can be read"),
]


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Have this process open no further file."""
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
