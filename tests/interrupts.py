"""Interrupts at chosen places, each of them once."""

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest


def interrupts(run: Callable[[], Any], *files: str) -> Iterator[str]:
    """Run once for each place in files that end so, interrupted there; yield each place once the run has ended.

    A place is where a function begins, or where a call of a C function returns: there CPython lets signals in (and at
    the ends of loops).
    """
    run()  # what is done once in a process is behind it
    seen: list[str] = []
    _watched(run, files, seen.append)
    for stop in range(len(seen)):
        places: list[str] = []

        def interrupt(place: str, places: list[str] = places, stop: int = stop) -> None:
            places.append(place)
            if len(places) == stop + 1:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            _watched(run, files, interrupt)
        assert places[stop] == seen[stop]
        yield places[stop]


def _watched(run: Callable[[], Any], files: tuple[str, ...], see: Callable[[str], None]) -> None:
    def profile(frame: FrameType, event: str, called: Any) -> None:
        code = frame.f_code
        if event in ("call", "c_return") and code.co_filename.endswith(files):
            what = "begins" if event == "call" else f"after {called.__name__}"
            see(f"{code.co_filename}:{frame.f_lineno}, {code.co_name} {what}")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(before)
