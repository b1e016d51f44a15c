"""Progress is a bar on a terminal, lines where asked for, and nothing when quiet."""

import io
import logging
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from detjac_lanczos import runs
from detjac_lanczos.models import LoadedModel
from detjac_lanczos.runs import analyze
from detjac_lanczos.runs.progress import ProgressReporter
from detjac_lanczos.solvers import Progress, svd
from tests.tiny_llama import PROMPT

HALF_FOUND = Progress(3, 40, 1200.0, 1, 2, [np.ones(4)] * 2, [np.full(4, 1e-4), np.full(4, 1e-2)])
NOTHING_YET = Progress(1, 6, 14.0, 0, 2, [np.empty(0)] * 2, [np.empty(0)] * 2)


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


def test_a_stage_is_taken_away_where_an_interrupt_follows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(Terminal):
        def write(self, text: str) -> int:
            super().write(text)
            if "loading" in text:
                raise KeyboardInterrupt
            return len(text)

    terminal = Interrupted()
    monkeypatch.setattr("sys.stderr", terminal)
    with pytest.raises(KeyboardInterrupt), ProgressReporter() as progress:
        progress.stage("loading")
    assert terminal.getvalue().endswith("…\r\x1b[K")


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


@pytest.mark.parametrize("propagates", [True, False])
def test_the_log_goes_where_the_caller_had_it_when_the_last_of_several_has_ended(propagates: bool) -> None:
    log = logging.getLogger("detjac_lanczos")
    before, log.propagate, handlers = log.propagate, propagates, list(log.handlers)
    try:
        first, second = ProgressReporter(), ProgressReporter()
        with second:
            first.__enter__()
            first.__exit__()
            assert not log.propagate
        assert log.propagate is propagates and log.handlers == handlers
    finally:
        log.propagate = before


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressReporter(1e-3, quiet=True)
    progress.stage("loading")
    progress.say("something")
    progress(HALF_FOUND)
    assert capsys.readouterr().err == ""


def test_elsewhere_a_line_is_shown_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Passes at seconds 1, 6, 7 and 12: those at 6 and at 12 are told."""
    clock = iter([0.0, 1.0, 6.0, 6.0, 7.0, 12.0, 12.0])
    monkeypatch.setattr("detjac_lanczos.runs.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    progress = ProgressReporter(1e-3)
    for passes in (1, 2, 3, 4):
        progress(replace(HALF_FOUND, passes=passes))
    told = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1] for line in told] == [" pass 2", " pass 4"]


def test_a_residual_at_the_tolerance_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    ProgressReporter(1e-4, verbose=True)(HALF_FOUND)
    assert "4 of 8 triplets" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "lines"), [({"quiet": True}, 0), ({"verbose": True}, 2)])
def test_on_a_terminal_too_quiet_is_quiet_and_verbose_is_lines(
    options: dict[str, bool], lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with ProgressReporter(1e-3, **options) as progress:
        progress.stage("loading")
        progress(HALF_FOUND)
    assert terminal.getvalue().count("\n") == lines == len(terminal.getvalue().splitlines())


def test_what_stops_the_work_is_asked_at_every_stage_and_pass() -> None:
    asked = []
    progress = ProgressReporter(1e-3, quiet=True, check=lambda: asked.append(None))
    progress.stage("loading")
    progress(HALF_FOUND)
    assert len(asked) == 2


def test_a_step_is_a_bar_on_a_terminal_and_a_line_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in ({}, {"verbose": True}, {"quiet": True}):
        ProgressReporter(**options).step("measuring triplets", 2, 4)
    assert capsys.readouterr().err == "detjac: measuring triplets, 3 of 4\n" * 2
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with ProgressReporter() as progress:
        progress.step("measuring outputs", 0, 4)
        progress.step("measuring triplets", 2, 4)
        assert "measuring outputs" in terminal.getvalue()
        assert "measuring triplets:  50%" in terminal.getvalue() and "2/4" in terminal.getvalue()
    assert terminal.getvalue().rsplit("\r", 2)[-1].strip() == "" and "\n" not in terminal.getvalue()


def test_another_kind_of_work_is_another_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with ProgressReporter(1e-3) as progress:
        progress.step("measuring triplets", 2, 4)
        for begin in (lambda: progress(HALF_FOUND), lambda: progress.step("measuring outputs", 0, 4)):
            terminal.truncate(0)
            begin()
            told = terminal.getvalue().rsplit("\r", 1)[-1]
            assert ("singular triplets" in told) != ("measuring" in told)
            assert ("singular triplets" in told) == ("1,200 row-sweeps" in told)


def ipython(shell: object) -> SimpleNamespace:
    return SimpleNamespace(get_ipython=lambda: shell)


def test_a_notebook_sees_a_bar_by_default(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kernel has no terminal; IPython in one, or merely imported, has no kernel."""
    monkeypatch.setitem(sys.modules, "IPython", ipython(SimpleNamespace(kernel=object())))
    for options in ({"method": "lanczos"}, {"method": "shared_basis"}):
        analyze(tiny, PROMPT, k=2, **options)
        assert "singular triplets: " in capsys.readouterr().err
    seen: list[Progress] = []
    analyze(tiny, PROMPT, k=2, callback=seen.append)
    assert seen and capsys.readouterr().err == ""
    for module in (ipython(None), ipython(SimpleNamespace()), SimpleNamespace()):
        monkeypatch.setitem(sys.modules, "IPython", module)
        analyze(tiny, PROMPT, k=2)
        assert capsys.readouterr().err == ""


def test_what_is_exported_is_a_callback_of_a_solve(capsys: pytest.CaptureFixture[str]) -> None:
    with runs.ProgressReporter(verbose=True) as progress:
        svd(np.diag(np.arange(1.0, 40.0)), k=2, method="lanczos", callback=progress)
    assert capsys.readouterr().err.startswith("detjac: pass 1: ")
