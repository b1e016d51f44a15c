"""What an error says in one line, and what of it is no fault of the file that was read."""

import errno
import os

import pytest
import torch

from detjac_lanczos.errors import ModelError, RunFileError, first_line, shortage, shortage_said


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one"), "one"),
        (ValueError("\n one\ntwo"), "one"),
        (NotImplementedError(), "NotImplementedError"),
        (RuntimeError(" \n"), "RuntimeError"),
    ],
)
def test_the_first_line_of_an_error(error: Exception, line: str) -> None:
    assert first_line(error) == line


SHORT_OF_MEMORY = [
    MemoryError(),
    OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    torch.OutOfMemoryError("CUDA out of memory. Tried\nto allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("unable to mmap 538090408 bytes from file <a>: Cannot allocate memory (12)"),
    RuntimeError("std::bad_alloc"),
]
SHORT_OF_DESCRIPTORS = [
    OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
    OSError(errno.ENFILE, os.strerror(errno.ENFILE)),
    RuntimeError("unable to open file <a> in read-only mode: Too many open files (24)"),
]
SHORT = [(error, "too little memory") for error in SHORT_OF_MEMORY]
SHORT += [(error, "too many files are open") for error in SHORT_OF_DESCRIPTORS]


@pytest.mark.parametrize(("error", "said"), SHORT, ids=lambda value: repr(value)[:60])
@pytest.mark.parametrize("hidden", [False, True])
def test_what_ran_out_is_said_whatever_was_made_of_it(error: Exception, said: str, hidden: bool) -> None:
    expected = pytest.raises(RunFileError, match=rf"^cannot read a: .*{said} \(.+\); .+")
    with expected as caught, shortage_said("read a", RunFileError):
        try:
            raise error
        except Exception:
            if hidden:
                raise ModelError("a is damaged") from None
            raise
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [ModelError("a is damaged"), FileNotFoundError("a"), ValueError("a")])
def test_what_its_caller_handles_is_no_cause_of_an_error(error: Exception) -> None:
    def read() -> None:
        with shortage_said("read a", RunFileError):
            raise error

    with pytest.raises(type(error)) as caught:
        try:
            raise MemoryError
        except MemoryError:
            read()
    assert caught.value is error and isinstance(error.__context__, MemoryError)


def test_a_file_is_not_called_missing_as_no_descriptor_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    missing = FileNotFoundError("No such file or directory: a")  # of safetensors
    assert shortage(missing) is None
    monkeypatch.setattr(os, "open", none_left)
    said = shortage(missing)
    monkeypatch.undo()
    assert said is not None and said.startswith("too many files are open")
