"""Seconds on a device, by its own events and from cold caches; on a CPU by the clock, once."""

import time
from collections.abc import Callable
from typing import Any

import torch

from detjac_kernels.choice import seconds_on_device


def seconds(device: torch.device, work: Callable[[], Any]) -> float:
    """Return the median seconds of some work that was run once before."""
    work()
    if device.type == "cuda":
        return seconds_on_device(work)
    return wall(device, work)


def wall(device: torch.device, work: Callable[[], Any]) -> float:
    """Return the seconds from before some work to the end of everything it started."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
