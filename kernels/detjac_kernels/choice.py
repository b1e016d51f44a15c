"""Which of several roads to the same product is the fastest: measured once for each class of shapes, kept as data."""

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from detjac_kernels.kept_choices import Kept, KeptChoices

Road = Callable[[], Tensor]
Timer = Callable[[Road], float]

AGREEMENT = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Largest relative difference between two roads: they round to the dtype of the rows, at different places."""

REPEATS = 5

_COLD = 256 << 20
"""Bytes that are written between two timings, so that a weight comes from memory as it does in a sweep."""

_PIECE = 1 << 22
"""Numbers that are compared at a time: two products in float32 at once would take more memory than the plan knows."""


_TRITON = find_spec("triton") is not None

_trials: dict[torch.device, str | None] = {}
"""Devices on which Triton was tried, and why it does not run; None where it does."""


class ChoiceTable:
    """A table from a class of shapes to the name of a road.

    Parameters
    ----------
    timer : callable
        Runs a road, on the current device, and returns its seconds.
    names : collection of str, optional
        All roads that there are; by default any that is replayed is taken for one.
    """

    def __init__(self, timer: Timer, names: Collection[str] | None = None) -> None:
        self._timer = timer
        self._names = names
        self._table: dict[str, str] = {}
        self._seconds: dict[str, dict[str, float]] = {}
        self._failures: dict[str, dict[str, str]] = {}
        self._asked: dict[str, int] = {}
        self._lock = threading.Lock()

    def choices(self) -> dict[str, str]:
        """Return a copy of the table."""
        return dict(self._table)

    def seconds(self) -> dict[str, dict[str, float]]:
        """Return what was measured: class of shapes to road to seconds; roads that failed or disagreed are left out."""
        return {key: dict(row) for key, row in self._seconds.items()}

    def failures(self) -> dict[str, dict[str, str]]:
        """Return why roads were left out: class of shapes to road to a sentence; a device without Triton is a class."""
        without = {str(device): {"triton": why} for device, why in _trials.items() if why is not None}
        return without | {key: dict(row) for key, row in self._failures.items()}

    def replay(self, recorded: Mapping[str, str]) -> None:
        """Put a recorded table in force: these classes are not measured again, unless their road is missing then."""
        with self._lock:
            known = recorded.values() if self._names is None else self._names
            self._table.update({key: road for key, road in recorded.items() if road in known})

    def forget(self, keys: Iterable[str]) -> None:
        """Take classes out of the table; they are measured when they are asked for again, or what is kept is taken."""
        with self._lock:
            for key in keys:
                self._table.pop(key, None)

    def run(
        self,
        key: str,
        roads: Mapping[str, Road],
        agreement: float,
        *,
        measure: bool = True,
        kept: KeptChoices | None = None,
    ) -> Tensor:
        """Run the best road of a class of shapes, and find it first where it is not known.

        A road that raises, whatever it is (Triton's errors and torch's have no base in common), loses: only an error of
        the first road is the caller's, and full memory in the chosen one. Where memory does not suffice to measure, the
        first road is run and the choice is left open; it is tried again at the 2nd, 4th, 8th … product of the class.

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
        kept : KeptChoices, optional
            What earlier processes measured, which replayed choices have precedence over. New measurements go there,
            unless a road failed or disagreed: why may be gone in the next process.
        """
        first = next(iter(roads))
        if self._table.get(key) not in roads and len(roads) > 1:
            with self._lock:
                self._recall(key, roads, kept)
                if measure and self._table.get(key) not in roads and self._due(key):
                    self._measure(key, roads, agreement)
                    if kept is not None and self._table.get(key) in roads and self._seconds[key].keys() == roads.keys():
                        kept.add(key, Kept(self._table[key], self._seconds[key]))
        chosen = self._table.get(key, first)
        if chosen == first or chosen not in roads:
            return roads[first]()
        try:
            return roads[chosen]()
        except Exception as error:
            if lacks_memory(error):
                raise
            result = roads[first]()
            self._failures.setdefault(key, {})[chosen] = sentence(error)
            self._table.pop(key, None)
            return result

    def _recall(self, key: str, roads: Mapping[str, Road], kept: KeptChoices | None) -> None:
        """Take a kept choice where there is no other; one that has failed in this process is none."""
        row = None if kept is None or key in self._table else kept.get(key)
        if row is not None and row.road in roads and row.road not in self._failures.get(key, {}):
            self._table[key], self._seconds[key] = row

    def _due(self, key: str) -> bool:
        """Count the products of a class that is not measured; True for the 1st, 2nd, 4th, 8th and so on."""
        asked = self._asked[key] = self._asked.get(key, 0) + 1
        return not asked & (asked - 1)

    def _measure(self, key: str, roads: Mapping[str, Road], agreement: float) -> None:
        first, *others = roads
        seconds, failures = {}, {}
        try:
            expected = roads[first]()
            with torch.cuda.device_of(expected):
                seconds[first] = self._timer(roads[first])
                for name in others:
                    try:
                        off = _difference(roads[name](), expected)
                        if off <= agreement:
                            seconds[name] = self._timer(roads[name])
                        else:
                            failures[name] = f"differs by {off:.1e}, more than {agreement:.0e}"
                    except Exception as error:
                        if lacks_memory(error):
                            raise
                        failures[name] = sentence(error)
        except Exception as error:
            if lacks_memory(error):
                return
            raise
        self._seconds[key] = seconds
        if failures:
            self._failures[key] = failures
        self._table[key] = min(seconds, key=lambda name: seconds[name])


def lacks_memory(error: Exception) -> bool:
    """Tell whether an error says that the device's memory is full now, which says nothing about a road."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)


def sentence(error: Exception) -> str:
    """Return an error's class and the first line of what it says."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def _difference(got: Tensor, expected: Tensor) -> float:
    """Return the relative difference (Frobenius), in float32, some numbers at a time."""
    pieces = list(zip(got.reshape(-1).split(_PIECE), expected.reshape(-1).split(_PIECE), strict=True))
    off = sum(float((a.float() - b.float()).square().sum()) for a, b in pieces)
    size = sum(float(b.float().square().sum()) for _, b in pieces)
    return (off / size) ** 0.5 if size else off


def seconds_on_device(road: Road) -> float:
    """Return the median seconds of a road on the current device, each time from cold caches."""
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
    """Tell whether Triton's kernels run where a tensor is: the first time on a device, by launching one.

    An installed Triton may need a C compiler, a driver or a library that is not there. Why it does not run is among the
    failures of every table. While a CUDA graph is captured, which forbids what a first launch does, nothing is tried.
    """
    if not x.is_cuda or torch.version.hip is not None or not _TRITON:
        return False
    if x.device not in _trials:
        if capturing(x):
            return False
        try:
            from detjac_kernels.device.trial import launch_trial

            launch_trial(x.device)
            _trials[x.device] = None
        except Exception as error:
            if lacks_memory(error):
                return False
            _trials[x.device] = sentence(error)
    return _trials[x.device] is None


def capturing(x: Tensor) -> bool:
    """Tell whether a CUDA graph is being captured, so that nothing may be measured."""
    with torch.cuda.device_of(x):
        return x.is_cuda and torch.cuda.is_current_stream_capturing()


def place(x: Tensor) -> str:
    """Return what every class begins with: device, dtype, and to what torch rounds the factors of float32 products.

    Rows of half precision have such products too: weights that are made again are mixed in float32.
    """
    setting = torch.backends.cuda.matmul.fp32_precision
    rounded = "" if setting in ("none", "ieee") else f" by {setting}"
    return f"{device_name(x.device)}, {str(x.dtype).removeprefix('torch.')}{rounded}"


@cache
def device_name(device: torch.device) -> str:
    """Return the name of a CUDA device's model, or the kind of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
