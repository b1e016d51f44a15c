"""What keeps a file that is whole from being read now, and what is then said of it."""

import errno

UNREADABLE = [
    (OSError(errno.EMFILE, "Too many open files"), "too many files are open"),
    (RuntimeError("unable to open file <a> in read-only mode: Too many open files (24)"), "too many files are open"),
    (RuntimeError("unable to mmap 9 bytes from file <a>: Cannot allocate memory (12)"), "too little memory"),
    (MemoryError(), "too little memory"),
    (OSError(errno.EIO, "Input/output error"), r"\(Input/output error\); give a file that can be read"),
    (RuntimeError("unable to mmap: No such device (19)"), r"\(unable to mmap.*\); give a file that can be read"),
]
