"""The command as a process: standard output of any kind, and no traceback."""

import io
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers.utils import logging as of_transformers

from detjac_lanczos import runs
from detjac_lanczos.cli.process import Interrupts, exit_code
from detjac_lanczos.errors import DetjacError
from tests.command_line import call, in_process, one_after_another
from tests.tiny_llama import PROMPT


def test_bad_input_is_one_line_without_a_traceback_and_warnings_that_are_errors_stop_nothing(
    folder: Path, tmp_path: Path
) -> None:
    commands = {
        ("svd", PROMPT, "--model", str(tmp_path), "-q"): 2,
        ("svd", PROMPT, "--model", str(folder), "-k", "1", "--tokens", "0", "-q"): 0,
    }
    done = one_after_another(commands, env=os.environ | {"PYTHONWARNINGS": "error"})
    assert done.returncode == 0
    assert done.stdout.startswith(str(folder).encode()) and done.stdout.decode().count(PROMPT) == 1
    assert b"config.json" in done.stderr and done.stderr.count(b"\n") == 1


def test_output_in_another_encoding_replaces_what_it_lacks() -> None:
    done = in_process("models", stdout=subprocess.PIPE, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"from its Q4_1 file ? Apache-2.0" in done.stdout


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as closed:
        done = in_process("models", stdout=closed)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("words", [["models"], ["--help"], ["svd", "--help"], ["--version"]], ids=" ".join)
def test_output_that_is_full_or_closed_is_one_line(words: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = in_process(*words, stdout=full)
    said = b"standard output cannot be written (No space left on device); send the result elsewhere"
    assert (done.returncode, done.stderr) == (2, b"detjac: %s\n" % said)
    done = in_process(*words, preexec_fn=lambda: os.close(1))
    said = b"standard output is closed; leave it open, the result goes there"
    assert (done.returncode, done.stderr) == (2, b"detjac: %s\n" % said)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_errors_that_are_lost_hurt_no_result(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = ("svd", PROMPT, "--model", folder, "-k", 1)
    with io.TextIOWrapper(io.FileIO("/dev/full", "w"), write_through=True) as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert [call(*job), call(*job, "--verbose"), call("svd", PROMPT, "--model", tmp_path)] == [0, 0, 2]
        assert in_process("--help", stdout=full, stderr=full).returncode == 2
    assert capsys.readouterr().out.count(PROMPT) == 2


def test_a_python_that_strips_docstrings_is_one_line(folder: Path) -> None:
    model = ("--model", str(folder))
    commands = {("svd", PROMPT, *model, "-q"): 2, ("plan", *model, "--tokens", "5"): 2}
    done = one_after_another(commands, "-OO")
    assert done.returncode == 0
    assert done.stderr.decode().count("run Python without it, -O will do\n") == done.stderr.count(b"\n") == 2


def test_every_error_is_one_line_whatever_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: object) -> int:
        raise DetjacError("what is wrong,\n  and how to mend it\n")

    assert exit_code(fail) == 2
    assert capsys.readouterr().err == "detjac: what is wrong, and how to mend it\n"


def test_an_interrupt_that_nobody_asked_after_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    def run(interrupts: Interrupts) -> int:
        interrupts.noted = signal.SIGTERM
        return 0

    assert exit_code(run) == 143
    assert capsys.readouterr().err == "detjac: terminated\n"


@pytest.mark.parametrize("shown", [True, False])
def test_libraries_are_left_as_talkative_as_they_were(
    shown: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where the command fails."""

    def settings() -> list[object]:
        said = [logging.getLogger(name).level for name in ("bitsandbytes", "transformers")]
        handlers = len(logging.getLogger("detjac_lanczos").handlers)
        return [*said, handlers, of_transformers.is_progress_bar_enabled(), os.environ.get("TQDM_DISABLE")]

    def fail(*arguments: object, **options: object) -> None:
        during.append(settings())
        raise DetjacError("no plan")

    during: list[list[object]] = []
    monkeypatch.setattr(of_transformers, "_tqdm_active", shown)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    caplog.set_level(logging.INFO, logger="bitsandbytes")
    before = settings()
    assert call("plan", "--model", folder, "--tokens", 5, "--device", "h100", "-q") == 0
    assert settings() == before
    monkeypatch.setattr(runs, "plan", fail)
    assert call("plan", "--tokens", 5, "-q") == 2
    assert settings() == before
    assert during == [[logging.ERROR, logging.ERROR, before[2] + 1, False, "1"]]  # type: ignore[operator]


@pytest.mark.parametrize("isatty", [lambda: True, lambda: False, None])
def test_bars_of_libraries_are_for_terminals(
    isatty: Callable[[], bool] | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stream that cannot tell, as programs put in the place of standard error, is none."""
    methods = {"write": sys.stderr.write, "flush": sys.stderr.flush} | ({"isatty": isatty} if isatty else {})

    def fail(*arguments: object, **options: object) -> None:
        during.append(os.environ.get("TQDM_DISABLE"))
        raise DetjacError("no plan")

    during: list[str | None] = []
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(**methods))
    monkeypatch.setattr(runs, "plan", fail)
    assert call("plan", "--tokens", 5) == 2
    assert during == [None if isatty and isatty() else "1"]
    assert "TQDM_DISABLE" not in os.environ


def test_streams_are_given_back_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = (io.TextIOWrapper(io.BytesIO()) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert exit_code(lambda _: 0) == 0
    assert sys.stdout is out and sys.stderr is err
    assert (out.errors, err.errors) == ("strict", "strict")
