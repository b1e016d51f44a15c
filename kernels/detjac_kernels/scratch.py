"""The buffers that decoded blocks pass through: one per thread, device, dtype and purpose, shared by all layers."""

import threading

import torch
from torch import Tensor

_local = threading.local()


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
