"""`detjac verify` and `detjac report`: a run on disk, measured and drawn again."""

import errno
import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from detjac_lanczos.runs import load_run
from tests.command_line import call, refused
from tests.runs.test_progress import Terminal
from tests.tiny_llama import PROMPT

pytestmark = pytest.mark.usefixtures("unpainted")


def test_result_is_printed_written_and_holds(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert call("svd", PROMPT, "--model", folder, "-k", 3, "--out", out) == 0
    shown = capsys.readouterr()
    assert "TRIPLETS 3/3" in shown.out
    assert "report.html" in shown.err
    assert len(load_run(out).tokens) == 6

    assert call("verify", out) == 0
    assert "claims hold" in capsys.readouterr().out
    (out / "report.html").unlink()
    assert call("report", out, "--json", "-q") == 0
    assert json.loads(capsys.readouterr().out) == {"page": str(out / "report.html")}
    assert (out / "report.html").read_text(encoding="utf-8").lower().startswith("<!doctype html>")


def test_failed_claim_is_no_success(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vectors = {name: value.clone() for name, value in load_file(out / "vectors.safetensors").items()}
    vectors["U.0.0"][0, 1] += 0.1
    save_file(vectors, out / "vectors.safetensors")
    assert call("verify", out, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"]
    assert any(not claim["holds"] and "token 0" in claim["what"] for claim in found["claims"])


def test_a_model_that_was_moved_is_named_and_put_where_one_says(
    harmed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, moved = tmp_path / "out", tmp_path / "moved"
    assert call("svd", PROMPT, "--model", harmed, "-k", 2, "--tokens", 0, "--out", out, "-q") == 0
    harmed.rename(moved)
    capsys.readouterr()
    lost = refused(capsys, "verify", out, "-q")
    assert f"is no longer at {harmed}" in lost
    assert "--model" in lost
    assert call("verify", out, "--model", moved, "-q") == 0
    capsys.readouterr()
    assert "nowhere" in refused(capsys, "verify", out, "--model", moved, "--device", "nowhere", "-q")


def test_quiet_and_verbose_mean_the_same_everywhere(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (("verify", out), "claims hold"),
        (("report", out), "report.html"),
        (("models",), "smollm2"),
    ):
        capsys.readouterr()
        assert call(*arguments, "--quiet") == 0
        quiet = capsys.readouterr()
        assert words in quiet.out and quiet.err == ""
        assert call(*arguments, "--verbose") == 0
        assert quiet.out in capsys.readouterr().out


def test_a_record_nested_too_deeply_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text("[" * 100_000)
    assert "damaged" in refused(capsys, "report", tmp_path)


def test_a_page_that_cannot_be_written_is_one_line(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("write_text", "unlink"):
        monkeypatch.setattr(Path, name, read_only)
    assert "Read-only file system" in refused(capsys, "report", out)


def test_figures_that_cannot_be_written_are_one_line(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out / "figures").write_text("no folder")
    assert "figures (File exists)" in refused(capsys, "report", out)


def test_every_claim_is_listed_where_one_wants_it_and_json_stays_json(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = []
    for options in ((), ("--verbose",)):
        capsys.readouterr()
        assert call("verify", out, *options) == 0
        listed.append(sum(line.startswith("holds  ") for line in capsys.readouterr().out.splitlines()))
    assert call("verify", out, "--verbose", "--json") == 0
    assert listed == [0, len(json.loads(capsys.readouterr().out)["claims"])]


def test_a_page_is_opened_where_one_asks_for_it(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert call("report", out) == 0 and opened == []
    assert call("report", out, "--open") == 0 and opened == [(out / "report.html").as_uri()]


def test_verify_tells_every_step(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines where there is no terminal, a bar that leaves nothing behind on one, and standard output for the result."""
    assert call("verify", out) == 0
    shown, told = capsys.readouterr()
    steps = ["outputs", "bounds and estimates", "triplets", "what vectors decode to"]
    assert told.splitlines() == [f"detjac: measuring {what}, {at} of 4" for at, what in enumerate(steps, 1)]
    assert "measuring" not in shown
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert call("verify", out) == 0
    assert all(f"measuring {what}" in terminal.getvalue() for what in steps)
    assert "\n" not in terminal.getvalue()
