"""`detjac svd` of what cannot be done: exit code 2, one line, nothing written."""

import shutil
from pathlib import Path

import pytest

from tests.command_line import call, refused
from tests.tiny_llama import PROMPT


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["the " * 33], "context is 32; shorten"),
        ([PROMPT, "--tokens", "6"], "token 6 does not exist"),
        ([PROMPT, "bridge", "--tokens", "1"], "token 1 does not exist; prompt 1 has 1 token, 0..0"),
        ([PROMPT, "--position", "6"], "position 6 does not exist"),
        ([PROMPT, "--target", "layer"], "output, residual, logits, layer(12), attention(3) or mlp(5) for a target"),
        ([PROMPT, "--target", "probe(3)"], "probes are for Python alone"),
        ([PROMPT, "--target", "nowhere"], "target must be"),
        ([PROMPT, "--chat"], "no chat template"),
        ([PROMPT, "--device", "abacus"], "abacus"),
    ],
)
def test_what_the_model_cannot_do_is_one_line(
    folder: Path, tmp_path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert words in refused(capsys, "svd", *arguments, "--model", folder, "--out", out)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-k", "65"], "from 1 to 64"),
        (["--target", "mlp(3)"], "layer 3 does not exist"),
        (["--source", "layer(2)", "--target", "layer(1)"], "before the source"),
        (["--tokens", "3,32"], "token 32 does not exist; a prompt of harmed has 32 tokens at most"),
        (["--position", "-33"], "position -33 does not exist"),
    ],
)
def test_what_the_configuration_rules_out_is_said_before_weights_are_read(
    harmed: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (harmed / "model.safetensors").unlink()
    assert words in refused(capsys, "svd", PROMPT, *arguments, "--model", harmed)


@pytest.mark.parametrize("name", ["a\0b", "n" * 300, "~nobody-of-this-name/x"])
def test_names_that_no_file_can_have_are_one_line(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no model at" in refused(capsys, "svd", PROMPT, "--model", name)
    refused(capsys, "plan", "--tokens", 8, "--model", name)
    place = name if name.startswith("~") else f"{tmp_path}/{name}"
    assert "names no folder" in refused(capsys, "svd", PROMPT, "--model", folder, "--out", place)


def test_unsupported_family_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    from transformers import BertConfig, BertLMHeadModel

    place = Path(shutil.copytree(folder, tmp_path / "bert", ignore=shutil.ignore_patterns("*.safetensors", "config*")))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertLMHeadModel(BertConfig(vocab_size=12, is_decoder=True, **sizes)).save_pretrained(place)
    capsys.readouterr()  # the bar of saving
    line = refused(capsys, "svd", PROMPT, "--model", place)
    assert "BertLMHeadModel" in line
    assert "Llama 2 / 3" in line


def test_corrupt_gguf_file_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "corrupt.gguf").write_bytes(b"GGUF" + bytes(range(256)) * 9)
    assert "corrupt.gguf cannot be read" in refused(capsys, "svd", PROMPT, "--model", tmp_path / "corrupt.gguf")


def test_output_folder_is_tried_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("mine", encoding="utf-8")
    for out in (tmp_path / "taken", tmp_path / "taken" / "below", tmp_path):
        assert call("svd", PROMPT, "--model", "no-such-model", "--out", out) == 2
        line = capsys.readouterr().err
        assert "no-such-model" not in line and "names no folder" not in line
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]


def test_verbose_errors_have_a_traceback_and_end_in_their_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("svd", PROMPT, "--model", tmp_path / "nowhere", "--verbose") == 2
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("Traceback") for line in lines) and lines[-1].startswith("detjac: no model at")


@pytest.mark.parametrize("place", ["out", "out/passes", "out/figures/../passes"])
def test_a_checkpoint_in_the_output_folder_is_refused_before_the_work(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The output is replaced as a whole and holds a run alone: what was found could not be written there."""
    out, checkpoint = tmp_path / "out", tmp_path / place
    line = refused(capsys, "svd", PROMPT, "--model", "no-such-model", "--out", out, "--checkpoint", checkpoint)
    assert f"would lie in {out}" in line and "no-such-model" not in line
    assert not any(tmp_path.iterdir())


def test_a_checkpoint_beside_the_output_is_taken(folder: Path, tmp_path: Path) -> None:
    options = ("-k", 1, "--tokens", 0, "--method", "lanczos", "-q")
    places = ("--out", tmp_path / "passes" / "out", "--checkpoint", tmp_path / "passes")
    for _ in range(2):
        assert call("svd", PROMPT, "--model", folder, *options, *places) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--delta", "1e-3"], "--certify complete"),
        (["--delta", "1e-6"], "--certify complete"),
        (["--delta", "1e-3", "--certify", "none"], "--certify complete"),
        (["--block", "5", "--method", "dense"], "method 'dense' has none"),
    ],
)
def test_options_that_nothing_would_follow_are_refused(
    folder: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refused(capsys, "svd", PROMPT, "--model", folder, *options)


def test_a_block_that_has_no_room_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("-k", 1, "--tokens", 0, "--method", "lanczos")
    assert call("svd", PROMPT, "--model", folder, *options, "--block", 100) == 0
    assert "--block 100 is more than a Jacobian has room for: blocks had 64 columns" in capsys.readouterr().err
    assert call("svd", PROMPT, "--model", folder, *options, "--block", 4) == 0
    assert "--block" not in capsys.readouterr().err
