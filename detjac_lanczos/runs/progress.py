"""How long work shows itself: a bar on a terminal, a plain line now and then elsewhere, nothing if told to be quiet."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any, Self

from tqdm import tqdm

from detjac_lanczos.solvers import Progress

_SECONDS_BETWEEN_LINES = 5.0
_ERASE = "\x1b[K"
_PACKAGE_LOG = logging.getLogger("detjac_lanczos")


class ProgressReporter:
    """A solver callback and a place for remarks, all on standard error.

    While it is entered, what the package logs is shown as stages.

    Parameters
    ----------
    tol : float
        Triplets below it are counted as found.
    quiet : bool
        Show nothing.
    verbose : bool
        Show a line for every pass.
    check : callable, optional
        Called at every stage and pass; what it raises stops the work.
    """

    def __init__(
        self,
        tol: float = 0.0,
        *,
        quiet: bool = False,
        verbose: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._tol, self._quiet, self._verbose, self._check = tol, quiet, verbose, check
        self._bar: Any = None
        self._staged = False
        self._on_terminal = sys.stderr.isatty()
        self._spoke = time.monotonic()
        self._log = _StageHandler(self)

    def __enter__(self) -> Self:
        """Return itself; leaving the block closes the bar."""
        _PACKAGE_LOG.addHandler(self._log)
        _PACKAGE_LOG.propagate = False
        return self

    def __exit__(self, *_: object) -> None:
        """Close the bar."""
        _PACKAGE_LOG.removeHandler(self._log)
        _PACKAGE_LOG.propagate = True
        self.close()

    def say(self, text: str) -> None:
        """Show one line."""
        if not self._quiet:
            self.close()
            print(f"detjac: {text}", file=sys.stderr, flush=True)

    def stage(self, text: str) -> None:
        """Show what is going on until something else is shown; only on a terminal, so that errors stay one line."""
        self._check()
        if self._verbose:
            self.say(text)
        elif self._on_terminal and not self._quiet:
            self.close()
            print(f"\r{_ERASE}detjac: {text} …", end="", file=sys.stderr, flush=True)
            self._staged = True

    def close(self) -> None:
        """Take the stage and the bar away."""
        if self._staged:
            print(f"\r{_ERASE}", end="", file=sys.stderr, flush=True)
            self._staged = False
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __call__(self, progress: Progress) -> None:
        """Show how many triplets have been found after a pass."""
        self._check()
        if self._quiet:
            return
        wanted = sum(len(residuals) for residuals in progress.residuals)
        found = sum(int((residuals <= self._tol).sum()) for residuals in progress.residuals)
        if self._on_terminal and not self._verbose:
            self._show_bar(progress, found, wanted)
        elif self._verbose or time.monotonic() - self._spoke > _SECONDS_BETWEEN_LINES:
            self._spoke = time.monotonic()
            triplets = f"{found} of {wanted} triplets, " if wanted else ""
            self.say(
                f"pass {progress.passes}: {triplets}{progress.finished} of {progress.operators} tokens done, "
                f"{progress.row_sweeps:,.0f} row-sweeps"
            )

    def _show_bar(self, progress: Progress, found: int, wanted: int) -> None:
        if self._bar is None:
            self.close()
            self._bar = tqdm(desc="singular triplets", leave=False, unit="triplet", file=sys.stderr)
        self._bar.total, self._bar.n = wanted or None, found
        self._bar.set_postfix_str(f"pass {progress.passes}, {progress.row_sweeps:,.0f} row-sweeps")


class _StageHandler(logging.Handler):
    """Shows log records as stages of a reporter."""

    def __init__(self, reporter: ProgressReporter) -> None:
        super().__init__()
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self._reporter.stage(record.getMessage())
