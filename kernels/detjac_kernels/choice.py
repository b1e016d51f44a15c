"""Which of several roads to the same product is the fastest: measured once for each class of shapes, kept as data."""

import threading
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

Road = Callable[[], Tensor]
Timer = Callable[[Road], float]

AGREEMENT = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Largest relative difference between two roads: they round to the dtype of the rows, at different places."""

REPEATS = 5

_COLD = 256 << 20
"""Bytes that are written between two timings, so that a weight comes from memory as it does in a sweep."""


class ChoiceTable:
    """A table from a class of shapes to the name of a road.

    Parameters
    ----------
    timer : callable
        Runs a road and returns its seconds.
    """

    def __init__(self, timer: Timer) -> None:
        self._timer = timer
        self._table: dict[str, str] = {}
        self._seconds: dict[str, dict[str, float]] = {}
        self._lock = threading.Lock()

    def choices(self) -> dict[str, str]:
        """Return a copy of the table."""
        return dict(self._table)

    def seconds(self) -> dict[str, dict[str, float]]:
        """Return what was measured: class of shapes to road to seconds; roads that failed or disagreed are left out."""
        return {key: dict(row) for key, row in self._seconds.items()}

    def replay(self, recorded: Mapping[str, str]) -> None:
        """Put a recorded table in force: these classes are not measured again, unless their road is missing then."""
        with self._lock:
            self._table.update(recorded)

    def run(self, key: str, roads: Mapping[str, Road], agreement: float, *, measure: bool = True) -> Tensor:
        """Run the best road of a class of shapes, and find it first where it is not known.

        Parameters
        ----------
        key : str
            The class of shapes.
        roads : mapping of str to callable
            At least one. The first is the reference that the others are compared with, and the road that is taken
            where nothing may be measured.
        agreement : float
            Largest relative difference (Frobenius) from the first road that still counts as the same product.
        measure : bool
            False while a CUDA graph is being captured, say.
        """
        chosen = self._table.get(key)
        if chosen is not None and chosen in roads:
            return roads[chosen]()
        if len(roads) == 1 or not measure:
            return next(iter(roads.values()))()
        with self._lock:
            if self._table.get(key) not in roads:
                self._measure(key, roads, agreement)
        return roads[self._table[key]]()

    def _measure(self, key: str, roads: Mapping[str, Road], agreement: float) -> None:
        first, *others = roads
        expected = roads[first]().float()
        size = expected.norm()
        seconds = {first: self._timer(roads[first])}
        for name in others:
            try:
                if bool((roads[name]().float() - expected).norm() <= agreement * size):
                    seconds[name] = self._timer(roads[name])
            except RuntimeError:
                continue
        self._seconds[key] = seconds
        self._table[key] = min(seconds, key=lambda name: seconds[name])


def seconds_on_device(road: Road) -> float:
    """Return the median seconds of a road on the device, each time from cold caches."""
    cold = torch.empty(_COLD, dtype=torch.uint8, device="cuda")
    taken = []
    for _ in range(REPEATS):
        cold.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        road()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) / 1e3)
    return sorted(taken)[REPEATS // 2]


def triton_runs(x: Tensor) -> bool:
    """Tell whether a tensor is where Triton's kernels can be launched, and Triton is there."""
    return x.is_cuda and torch.version.hip is None and _triton_installed()


def capturing(x: Tensor) -> bool:
    """Tell whether a CUDA graph is being captured, so that nothing may be measured."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


@cache
def device_name(device: torch.device) -> str:
    """Return the name of a CUDA device's model, or the kind of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@cache
def _triton_installed() -> bool:
    return find_spec("triton") is not None
