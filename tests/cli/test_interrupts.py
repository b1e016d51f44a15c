"""Ctrl-C or SIGTERM at any time: exit code 130 or 143, and a folder that is whole, the old one or the new one."""

import importlib
import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from detjac_lanczos.cli.process import noted_interrupts
from detjac_lanczos.runs import disk, load_run
from detjac_lanczos.runs.progress import ProgressReporter
from tests.command_line import call, refused
from tests.tiny_llama import PROMPT


@pytest.mark.usefixtures("interruptible")
def test_interrupt_leaves_nothing_behind(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ProgressReporter, "__call__", lambda *_: signal.raise_signal(signal.SIGINT))
    assert call("svd", PROMPT, "--model", folder, "--method", "lanczos", "--out", tmp_path / "out") == 130
    assert capsys.readouterr().err.splitlines()[-1] == "detjac: interrupted"
    assert not any(tmp_path.iterdir())


STAGES = {
    "loading": ("detjac_lanczos.models.load", "fingerprint_of"),
    "detaching": ("detjac_lanczos.operators.detach", "capture"),
    "decoding": ("detjac_lanczos.runs.analysis", "read_triplets"),
    "drawing": ("detjac_lanczos.runs.disk", "save_figures"),
    "writing": ("detjac_lanczos.runs.folder", "_sync"),
    "renaming": ("detjac_lanczos.runs.folder", "_exchange"),
    "clearing up": ("shutil", "rmtree"),
}


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupt_at_any_stage_leaves_a_whole_folder(
    stage: str,
    number: int,
    code: int,
    word: str,
    folder: Path,
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One signal comes as a stage begins, others while files are cleared up."""

    def interrupt() -> None:
        signal.raise_signal(number)

    monkeypatch.setattr(disk, "save_figures", lambda *_: [])
    module, name = STAGES[stage]
    place = importlib.import_module(module)
    monkeypatch.setattr(place, name, _interrupted(getattr(place, name), interrupt))
    monkeypatch.setattr(shutil, "rmtree", _interrupted(shutil.rmtree, interrupt))
    assert call("svd", PROMPT, "--model", folder, "-k", 2, "--tokens", 1, "--out", out, "-q") == code
    assert capsys.readouterr().err == f"detjac: {word}\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    expected = 1 if stage in ("renaming", "clearing up") else 0
    assert [token.index for token in load_run(out).tokens] == [expected]


def _interrupted(function: Any, interrupt: Any = lambda: signal.raise_signal(signal.SIGINT)) -> Any:
    def interrupted(*args: Any, **options: Any) -> Any:
        interrupt()
        return function(*args, **options)

    return interrupted


@pytest.mark.usefixtures("interruptible")
def test_interrupt_that_a_library_turned_into_another_error_is_still_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def import_interrupted(*_: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    monkeypatch.setattr(ProgressReporter, "__call__", import_interrupted)
    assert call("svd", PROMPT, "--model", folder, "--method", "lanczos") == 130
    assert capsys.readouterr().err.splitlines()[-1] == "detjac: interrupted"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class _Interrupting:
    """Raises in a finalizer, where Python drops what is raised."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupt_that_python_dropped_is_raised_again(
    stage: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written, or, from the writing on, all of it."""
    hook = sys.unraisablehook
    monkeypatch.setattr(disk, "save_figures", lambda *_: [])
    module, name = STAGES[stage]
    place = importlib.import_module(module)
    monkeypatch.setattr(place, name, _interrupted(getattr(place, name), _Interrupting))
    out = tmp_path / "out"
    assert call("svd", PROMPT, "--model", folder, "-k", 2, "--tokens", 1, "--out", out) == 130
    assert capsys.readouterr() == ("", "detjac: interrupted\n")
    assert sys.unraisablehook is hook
    assert out.exists() == (stage in ("drawing", "writing", "renaming", "clearing up"))
    assert not out.exists() or [token.index for token in load_run(out).tokens] == [1]


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_that_python_dropped_ends_the_search_at_the_next_pass(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    usual = ProgressReporter.__call__

    def counted(self: ProgressReporter, progress: Any) -> None:
        passes.append(progress.passes)
        usual(self, progress)
        _Interrupting()

    monkeypatch.setattr(ProgressReporter, "__call__", counted)
    assert call("svd", PROMPT, "--model", folder, "--method", "lanczos", "--block", 1, "-q") == 130
    assert passes == [1, 2]


class _Failing:
    """Raises something else in a finalizer."""

    def __del__(self) -> None:
        raise ValueError("no interrupt")


@pytest.mark.usefixtures("interruptible")
def test_other_errors_that_python_drops_are_shown_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: shown.append(dropped.exc_type))
    with noted_interrupts() as interrupts:
        _Failing()
    assert shown == [ValueError] and interrupts.noted is None


@pytest.mark.usefixtures("interruptible")
def test_a_signal_that_someone_else_handles_stays_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: theirs.append(number))
    try:
        with noted_interrupts() as interrupts:
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert theirs == [signal.SIGTERM] * 2 and interrupts.noted is None


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_command_goes_on_from_its_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "work"
    command = ("svd", PROMPT, "--model", folder, "-k", 3, "--method", "lanczos", "--checkpoint", place, "--json", "-q")

    def third(_: ProgressReporter, progress: Any) -> None:
        if progress.passes == 3:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(ProgressReporter, "__call__", third)
        assert call(*command) == 130
    early = {path: path.stat().st_mtime_ns for path in place.glob("pass-*")}
    assert len(early) == 3
    capsys.readouterr()
    assert call(*command) == 0
    resumed = json.loads(capsys.readouterr().out)
    assert {path: path.stat().st_mtime_ns for path in early} == early
    assert call(*command[:-4], "--json", "-q") == 0
    whole = json.loads(capsys.readouterr().out)
    for one, other in zip(whole["tokens"], resumed["tokens"], strict=True):
        assert (one["singular_values"], one["residuals"]) == (other["singular_values"], other["residuals"])
    assert whole["work"]["products"] == resumed["work"]["products"]


def test_a_checkpoint_in_a_folder_of_other_files_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no solve" in refused(capsys, "svd", PROMPT, "--model", folder, "--checkpoint", folder, "-q")
