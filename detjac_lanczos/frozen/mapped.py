"""Tensors that lie in files: the system reads their pages when a sweep needs them, and lets them go when told to."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from detjac_lanczos.errors import InputError

_files: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def mapped_zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a tensor of zeros in an unnamed file of the temporary folder (``TMPDIR``), gone with the tensor.

    Raises
    ------
    InputError
        If there is no room for it.
    """
    size = math.prod(shape) * dtype.itemsize
    try:
        with tempfile.TemporaryFile(prefix="detjac-") as file:
            _make_room(file.fileno(), max(size, 1))
            pages = mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise InputError(
            f"no room for {size / 2**20:.0f} MiB of coefficients in {tempfile.tempdir or 'any folder'} "
            f"({error.strerror}); set TMPDIR to a larger disk, or give more memory"
        ) from error
    tensor = torch.frombuffer(pages, dtype=dtype).view(tuple(shape))
    _files[tensor] = pages
    return tensor


def _make_room(file: int, size: int) -> None:
    """Give a file its size, on the disk where the system can: macOS finds out about a full one when it is written."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.ftruncate(file, size)


def mapped_elsewhere(tensor: Tensor) -> Tensor:
    """Return a tensor whose file another library mapped, known as mapped from now on; pages are not ours to advise."""
    _files[tensor] = None
    return tensor


def is_mapped(tensor: Tensor) -> bool:
    """Tell whether a tensor lies in a file."""
    return tensor in _files


def expect(tensors: Iterable[Tensor]) -> None:
    """Have the system read the pages of tensors ahead; those that lie in no file of ours are left alone."""
    for tensor in tensors:
        if pages := _files.get(tensor):
            pages.madvise(mmap.MADV_WILLNEED)


def let_go(tensors: Iterable[Tensor]) -> None:
    """Take the pages of tensors out of this process; they are read from their file when used again."""
    for tensor in tensors:
        if pages := _files.get(tensor):
            pages.madvise(mmap.MADV_DONTNEED)
