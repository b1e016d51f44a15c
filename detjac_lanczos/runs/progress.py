"""How long work shows itself: a bar on a terminal and in a notebook, plain lines elsewhere, nothing if told so."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from tqdm import tqdm

from detjac_lanczos.solvers import Progress
from detjac_lanczos.solvers.options import Callback

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
        self._counted = ""
        self._staged = False
        self._live = sys.stderr.isatty() or in_notebook()
        self._spoke = time.monotonic()
        self._log = _StageHandler(self)

    def __enter__(self) -> Self:
        """Return itself; leaving the block closes the bar."""
        _PACKAGE_LOG.addHandler(self._log)
        _shown_here.begin()
        return self

    def __exit__(self, *_: object) -> None:
        """Close the bar."""
        _PACKAGE_LOG.removeHandler(self._log)
        _shown_here.end()
        self.close()

    def say(self, text: str) -> None:
        """Show one line.

        Parameters
        ----------
        text : str
        """
        if not self._quiet:
            self.close()
            print(f"detjac: {text}", file=sys.stderr, flush=True)

    def stage(self, text: str) -> None:
        """Show what is going on until something else is; only where bars are shown, so that errors stay one line.

        Parameters
        ----------
        text : str
        """
        self._check()
        if self._verbose:
            self.say(text)
        elif self._live and not self._quiet:
            self.close()
            self._staged = True  # before it is: an interrupt right after the line finds it noted
            print(f"\r{_ERASE}detjac: {text} …", end="", file=sys.stderr, flush=True)

    def step(self, what: str, done: int, steps: int) -> None:
        """Show which step of known work begins: a bar, or a line; the ``callback`` of `verify`.

        Parameters
        ----------
        what : str
        done, steps : int
            Steps before this one, and how many there are.
        """
        self._check()
        if self._live and not self._verbose and not self._quiet:
            self._open_bar(what, "step")
            self._bar.total, self._bar.n = steps, done
            self._bar.set_description(what)
        else:
            self.say(f"{what}, {done + 1} of {steps}")

    def close(self) -> None:
        """Take the stage and the bar away."""
        if self._staged:
            print(f"\r{_ERASE}", end="", file=sys.stderr, flush=True)
            self._staged = False
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __call__(self, progress: Progress) -> None:
        """Show how many triplets have been found after a pass; the ``callback`` of `svd` and `analyze`.

        Parameters
        ----------
        progress : Progress
        """
        self._check()
        if self._quiet:
            return
        wanted = sum(len(residuals) for residuals in progress.residuals)
        found = sum(int((residuals <= self._tol).sum()) for residuals in progress.residuals)
        work = f"{progress.row_sweeps:,.0f} row-sweeps"
        if self._live and not self._verbose:
            self._open_bar("singular triplets", "triplet")
            self._bar.total, self._bar.n = wanted or None, found
            self._bar.set_postfix_str(f"pass {progress.passes}, {work}")
        elif self._verbose or time.monotonic() - self._spoke > _SECONDS_BETWEEN_LINES:
            self._spoke = time.monotonic()
            triplets = f"{found} of {wanted} triplets, " if wanted else ""
            done = f"{progress.finished} of {progress.operators} tokens done"
            self.say(f"pass {progress.passes}: {triplets}{done}, {work}")

    def _open_bar(self, what: str, unit: str) -> None:
        if self._bar is None or self._counted != unit:
            self.close()
            self._counted = unit
            self._bar = tqdm(desc=what, leave=False, unit=unit, file=sys.stderr)


@contextmanager
def usual_progress(callback: Callback | None, tol: float) -> Iterator[Callback | None]:
    """Give the callback that was asked for; where none was, a bar in a notebook, and none elsewhere."""
    if callback is not None or not in_notebook():
        yield callback
        return
    with ProgressReporter(tol) as reporter:
        yield reporter


def in_notebook() -> bool:
    """Whether a kernel of IPython runs this, which has no terminal but shows bars."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


class _ShownHere:
    """While any reporter is entered, what the package logs goes to reporters alone; then where it went before."""

    def __init__(self) -> None:
        self._lock, self._entered, self._before = threading.Lock(), 0, True

    def begin(self) -> None:
        with self._lock:
            if not self._entered:
                self._before, _PACKAGE_LOG.propagate = _PACKAGE_LOG.propagate, False
            self._entered += 1

    def end(self) -> None:
        with self._lock:
            self._entered -= 1
            if not self._entered:
                _PACKAGE_LOG.propagate = self._before


_shown_here = _ShownHere()


class _StageHandler(logging.Handler):
    """Shows log records as stages of a reporter."""

    def __init__(self, reporter: ProgressReporter) -> None:
        super().__init__()
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self._reporter.stage(record.getMessage())
