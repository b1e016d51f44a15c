"""Timing in turns, so that a drift of the machine meets every method alike."""

import time
from collections.abc import Callable, Mapping
from statistics import median

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""What seconds are: those that pass, or, on a busy machine and with one thread, those of the processor."""


def in_turns(
    methods: Mapping[str, Callable[[], object]], repeats: Mapping[str, int], clock: Callable[[], float] = CLOCKS["wall"]
) -> dict[str, list[float]]:
    """Run every method in turns, each as often as ``repeats`` says; return the seconds of every run."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(max(repeats.values())):
        for name, method in methods.items():
            if turn < repeats[name]:
                start = clock()
                method()
                seconds[name].append(clock() - start)
    return seconds


def middle(seconds: list[float]) -> float:
    """Return the median."""
    return float(median(seconds))
