"""Seconds on a device, by its own events and from cold caches; on a CPU by the clock, once."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from detjac_kernels.choice import seconds_on_device, sentence

Row = dict[str, Any]


def seconds(device: torch.device, work: Callable[[], Any]) -> float:
    """Return the median seconds of some work that was run once before; on a CPU those of its first run."""
    if device.type == "cuda":
        work()
        with torch.cuda.device(device):
            return seconds_on_device(work)
    return wall(device, work)


def attempt(row: Row, name: str, work: Callable[[], Any]) -> None:
    """Put what some work returns into ``row``; an error costs that entry alone, and its text is kept beside it."""
    try:
        row[name] = work()
    except Exception as error:
        row.setdefault("errors", {})[name] = sentence(error)


def time_roads(row: Row, device: torch.device, roads: Mapping[str, Callable[[], Any]]) -> Row:
    """Put the seconds of every road into ``row`` and return it."""
    for name, road in roads.items():
        attempt(row, name, lambda road=road: seconds(device, road))  # type: ignore[misc]
    return row


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
