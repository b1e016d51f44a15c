"""Copies to a CUDA device beside what it computes; on other devices nothing here does anything."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor


@contextmanager
def beside(device: torch.device) -> Iterator[None]:
    """Issue copies on a stream of their own; what is computed afterwards waits for them, what was before does not."""
    if device.type != "cuda":
        yield
        return
    main, side = torch.cuda.current_stream(device), _side_stream(device)
    with torch.cuda.stream(side):
        yield
    main.wait_stream(side)


def used_here(tensors: Iterable[Tensor]) -> None:
    """Say that tensors copied `beside` are used on the present stream: their memory is free only when that is done."""
    for tensor in tensors:
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))


class Pace:
    """Keeps the host at most one turn ahead of its devices, so that the values of two turns at most are on them."""

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self._devices = [device for device in set(devices) if device.type == "cuda"]
        self._ends: deque[list[torch.Event]] = deque()

    def before(self) -> None:
        """Wait for the end of the turn before the last one."""
        if len(self._ends) > 1:
            for end in self._ends.popleft():
                end.synchronize()

    def after(self) -> None:
        """Note the end of a turn."""
        self._ends.append([torch.cuda.current_stream(device).record_event() for device in self._devices])


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
