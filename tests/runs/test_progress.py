"""Progress is a bar on a terminal, lines where asked for, and nothing when quiet."""

import io
import logging

import numpy as np
import pytest

from detjac_lanczos.runs.progress import ProgressReporter
from detjac_lanczos.solvers import Progress

HALF_FOUND = Progress(3, 1200.0, 1, 2, [np.ones(4)] * 2, [np.full(4, 1e-4), np.full(4, 1e-2)])
NOTHING_YET = Progress(1, 14.0, 0, 2, [np.empty(0)] * 2, [np.empty(0)] * 2)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_stages_and_a_bar_that_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    with ProgressReporter(1e-3) as progress:
        progress.stage("loading")
        progress(NOTHING_YET)
        progress(HALF_FOUND)
        assert "loading" in terminal.getvalue()
        assert "4/8" in terminal.getvalue()
        assert "1,200 row-sweeps" in terminal.getvalue()
    assert terminal.getvalue().rsplit("\r", 2)[-1].strip() == ""
    assert "\n" not in terminal.getvalue()


def test_verbose_is_a_line_for_every_pass(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressReporter(1e-3, verbose=True)
    progress.stage("loading")
    progress(NOTHING_YET)
    progress(HALF_FOUND)
    assert capsys.readouterr().err.splitlines() == [
        "detjac: loading",
        "detjac: pass 1: 0 of 2 tokens done, 14 row-sweeps",
        "detjac: pass 3: 4 of 8 triplets, 1 of 2 tokens done, 1,200 row-sweeps",
    ]


def test_what_the_package_logs_is_a_stage(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("detjac_lanczos.models.cache")
    with ProgressReporter(1e-3, verbose=True):
        log.warning("unpacking %s", "a.gguf")
    with ProgressReporter(1e-3):
        log.warning("nobody watches")
    assert capsys.readouterr().err == "detjac: unpacking a.gguf\n"


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressReporter(1e-3, quiet=True)
    progress.stage("loading")
    progress.say("something")
    progress(HALF_FOUND)
    assert capsys.readouterr().err == ""
