"""Memory that is used again: buffers for decoded blocks, one per thread, device, dtype and purpose, and freed rows."""

import threading
from functools import cache

import torch
from torch import Tensor

_local = threading.local()

_KEPT = 31 << 20


@cache
def keep_freed_memory() -> None:
    """Have glibc's allocator keep what one sweep frees for the next, instead of handing its pages back each time.

    How much it keeps (64 MiB at most) follows the largest block that was ever freed; this frees one, which was never
    touched, and is none of torch's: it would count among what a sweep allocates. Pages that come back one fault at a
    time cost a tenth of a sweep of 112 rows of width 1024.
    """
    bytes(_KEPT)


def scratch(purpose: str, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return ``size`` values, (size,), that the next call for the same purpose overwrites."""
    buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = _local.__dict__.setdefault("buffers", {})
    buffer = buffers.get((purpose, dtype, device))
    if buffer is None or buffer.numel() < size:
        buffer = buffers[purpose, dtype, device] = torch.empty(size, dtype=dtype, device=device)
    return buffer[:size]


def converted(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return values in a dtype: themselves, or in scratch memory that the next conversion to it overwrites."""
    if values.dtype is dtype:
        return values
    return scratch("converted", values.numel(), dtype, values.device).view(values.shape).copy_(values)
