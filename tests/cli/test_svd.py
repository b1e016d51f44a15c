"""`detjac svd`: what is printed, what is written, and exit codes that mean something."""

import errno
import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from detjac_lanczos.frozen import converted
from detjac_lanczos.models import LoadedModel, load_model
from detjac_lanczos.reading import figures, sheet
from detjac_lanczos.runs import disk
from tests.command_line import call, refused
from tests.tiny_llama import PROMPT

pytestmark = pytest.mark.usefixtures("unpainted")


def test_json_is_one_object_and_quiet_is_quiet(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("svd", PROMPT, "--model", folder, "-k", 2, "--tokens", "0,3-5", "--json", "-q") == 0
    out, err = capsys.readouterr()
    assert err == ""
    record = json.loads(out)
    assert record["format"] == 1
    assert [token["index"] for token in record["tokens"]] == [0, 3, 4, 5]


@pytest.mark.parametrize("verbose", [False, True])
def test_advice_of_bitsandbytes_is_for_those_who_want_everything(
    verbose: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logger = pytest.importorskip("bitsandbytes.backends.cpu.ops").logger
    caplog.clear()  # what the import has to say

    def advised(*arguments: object, **options: object) -> LoadedModel:
        logger.warning("pip install kernels")
        return load_model(*arguments, **options)

    monkeypatch.setattr(converted, "load_model", advised)
    assert call("svd", PROMPT, "--model", folder, "-k", 1, "--tokens", 0, *(["--verbose"] if verbose else [])) == 0
    assert ("pip install kernels" in caplog.text) is verbose


def test_the_time_to_load_the_model_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def slowly(*arguments: object, **options: object) -> LoadedModel:
        time.sleep(0.2)
        return load_model(*arguments, **options)

    monkeypatch.setattr(converted, "load_model", slowly)
    assert call("svd", PROMPT, "--model", folder, "-k", 2, "--tokens", 0, "--json", "-q") == 0
    times = json.loads(capsys.readouterr().out)["times"]
    assert times["load"] >= 0.2
    assert times["total"] == pytest.approx(sum(times.values()) - times["total"])


def test_options_reach_the_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = ["--freeze", "up", "--dtype", "float64", "--certify", "none"]
    search = ["--method", "lanczos", "--seed", 7, "--block", 3, "--tol", "1e-6", "--tokens", 0]
    places = ["--source", "layer(1)", "--target", "mlp(2)", "--position", 1]
    options = [*rules, *search, *places, "--memory", "2MiB", "--json", "-q"]
    assert call("svd", PROMPT, "most of", "--model", folder, *options) == 0
    record = json.loads(capsys.readouterr().out)
    assert [(token["prompt"], token["index"]) for token in record["tokens"]] == [(0, 0), (1, 0)]
    assert record["freeze"] == "up"
    assert record["dtype"] == "float64"
    expected = {"seed": 7, "block": 3, "tol": 1e-6, "position": 1, "method": "lanczos", "certify": None}
    expected |= {"memory": 2 * 2**20}
    assert expected.items() <= record["options"].items()
    assert (record["options"]["source"], record["options"]["target"]) == ("layer(1)", "mlp(2)")
    assert record["tokens"][0]["certificate"] is None


def test_work_that_stops_short_is_no_success(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("svd", PROMPT, "--model", folder, "-k", 4, "--tokens", 0, "--tol", "1e-12", "--json") == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["tokens"][0]["status"] == "noise_floor"
    assert "stopped short" in err


def test_a_survey_that_was_asked_for_is_a_success(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("svd", PROMPT, "--model", folder, "-k", 3, "--method", "shared_basis", "--polish", 2, "--json") == 0
    out, err = capsys.readouterr()
    assert "estimates are no claims: --polish flagged" in err
    record = json.loads(out)
    assert sorted(token["status"] for token in record["tokens"]) == ["converged"] * 2 + ["estimate"] * 4
    assert "--polish" in refused(capsys, "svd", PROMPT, "--model", folder, "--polish", "all")


def test_without_matplotlib_it_is_said_that_there_are_no_figures(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    assert call("svd", PROMPT, "--model", folder, "-k", 1, "--tokens", "0", "--out", tmp_path / "out") == 0
    assert not (tmp_path / "out" / "figures").exists()
    assert sheet.NO_MATPLOTLIB in capsys.readouterr().err
    assert call("report", tmp_path / "out") == 0
    assert capsys.readouterr().err == f"detjac: {sheet.NO_MATPLOTLIB}\n"
    monkeypatch.undo()
    assert call("report", tmp_path / "out") == 0
    assert capsys.readouterr().err == ""
    assert len([*(tmp_path / "out" / "figures").iterdir()]) == 6


def test_a_disk_that_filled_up_meanwhile_costs_no_result(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk, "save_figures", full)
    options = ("-k", 2, "--tokens", 0, "--out", tmp_path / "out", "-q")
    assert call("svd", PROMPT, "--model", folder, *options) == 2
    out, err = capsys.readouterr()
    assert "TRIPLETS 2/2" in out
    assert "No space left on device" in err and err.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_the_chat_template_of_the_tokenizer_is_used(
    harmed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(harmed)
    tokenizer.chat_template = "{% for m in messages %}the {{ m['role'] }} {{ m['content'] }} {% endfor %}only"
    tokenizer.save_pretrained(harmed)
    out = tmp_path / "out"
    assert call("svd", "bridge out", "--chat", "--model", harmed, "-k", 2, "--out", out, "--json", "-q") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["prompt_tokens"] == [["the", "<unk>", "bridge", "out", "only"]]
    assert record["prompts"] == ["bridge out"] and record["options"]["chat"] is True
    assert call("verify", out) == 0


def test_output_that_is_zero_is_reconstructed_exactly_and_its_run_holds(
    harmed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {name: torch.zeros_like(value) for name, value in load_file(harmed / "model.safetensors").items()}
    save_file(weights, harmed / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "out"
    assert call("svd", PROMPT, "--model", harmed, "-k", 2, "--out", out) == 0
    assert "reconstruction  0.00e+00 (std/std) · 0.00e+00 (norm/norm)" in capsys.readouterr().out
    assert call("verify", out) == 0


def test_the_standard_prompt_on_smollm2(smollm2: LoadedModel, capsys: pytest.CaptureFixture[str]) -> None:
    """All of its tokens are those of README."""
    options = ("-k", 2, "--tokens", 6, "--json", "-q")
    assert call("svd", "The bridge out of Marin is the", "--model", "smollm2", *options) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["fingerprint"] == smollm2.fingerprint
    assert [token["certificate"]["line"][:12] for token in record["tokens"]] == ["TRIPLETS 2/2"]


def test_the_home_of_an_output_folder_is_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert call("svd", PROMPT, "--model", folder, "-k", 1, "--tokens", 0, "--out", "~/out") == 0
    err = capsys.readouterr().err
    assert f"wrote {tmp_path / 'out'}; the page is {tmp_path / 'out' / 'report.html'}" in err
    assert sheet.NO_MATPLOTLIB not in err
    assert len([*(tmp_path / "out" / "figures").iterdir()]) == 6


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_result_that_cannot_be_printed_says_where_it_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("-k", 1, "--tokens", 0, "-q", "--out", tmp_path / "out")
    with open("/dev/full", "w", encoding="utf-8") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        assert call("svd", PROMPT, "--model", folder, *options) == 2
    assert capsys.readouterr().err.endswith(f"send the result elsewhere; the run is in {tmp_path / 'out'}\n")
    assert (tmp_path / "out" / "run.json").is_file()
