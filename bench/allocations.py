"""What torch allocates on the CPU while something runs: every allocation and its end, from torch's own profiler."""

import gc
from collections.abc import Callable
from typing import TypeVar

from torch.profiler import ProfilerActivity, profile

T = TypeVar("T")


def with_peak(function: Callable[[], T]) -> tuple[T, int, int]:
    """Return a result, the most bytes that were held at once on the way, and how many are still held."""
    gc.collect()  # what ends meanwhile should have begun meanwhile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = function()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return result, peak, held
