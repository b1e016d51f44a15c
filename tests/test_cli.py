"""The command line: results on standard output, one line for bad input, exit codes that mean something."""

import errno
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import detjac_lanczos
from detjac_lanczos.cli import main
from detjac_lanczos.cli.parser import make_parser
from detjac_lanczos.models import LoadedModel, load_model
from detjac_lanczos.reading import figures
from detjac_lanczos.runs import analyze, load_run, verify
from detjac_lanczos.runs.progress import ProgressReporter
from tests.tiny_llama import PROMPT, save_tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the tiny model."""
    return save_tiny_llama(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture
def harmed(folder: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny model, to be harmed."""
    return Path(shutil.copytree(folder, tmp_path / "harmed"))


def _main(*arguments: object) -> int:
    """Run the command line as a process would, argument errors included."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as leave:
        return int(leave.code or 0)


def _refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run bad input: exit code 2, nothing on standard output, one line of advice on standard error."""
    assert _main(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    return err


def test_result_is_printed_written_and_holds(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert _main("svd", PROMPT, "--model", folder, "-k", 3, "--out", out) == 0
    shown = capsys.readouterr()
    assert "TRIPLETS 3/3" in shown.out
    assert "report.html" in shown.err
    assert len(load_run(out).tokens) == 6

    assert _main("verify", out) == 0
    assert "claims hold" in capsys.readouterr().out
    (out / "report.html").unlink()
    assert _main("report", out, "--json", "-q") == 0
    assert json.loads(capsys.readouterr().out) == {"page": str(out / "report.html")}
    assert (out / "report.html").read_text(encoding="utf-8").lower().startswith("<!doctype html>")


def test_json_is_one_object_and_quiet_is_quiet(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main("svd", PROMPT, "--model", folder, "-k", 2, "--tokens", "0,3-5", "--json", "-q") == 0
    out, err = capsys.readouterr()
    assert err == ""
    record = json.loads(out)
    assert record["format"] == 1
    assert [token["index"] for token in record["tokens"]] == [0, 3, 4, 5]
    assert record["times"]["load"] > 0


def test_options_reach_the_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = ["--freeze", "up", "--dtype", "float64", "--certify", "none"]
    search = ["--method", "lanczos", "--seed", 7, "--block", 3, "--tol", "1e-6", "--tokens", 0]
    places = ["--source", "layer(1)", "--target", "mlp(2)", "--position", 1]
    options = [*rules, *search, *places, "--json", "-q"]
    assert _main("svd", PROMPT, "most of", "--model", folder, *options) == 0
    record = json.loads(capsys.readouterr().out)
    assert [(token["prompt"], token["index"]) for token in record["tokens"]] == [(0, 0), (1, 0)]
    assert record["freeze"] == "up"
    assert record["dtype"] == "float64"
    expected = {"seed": 7, "block": 3, "tol": 1e-6, "position": 1, "method": "lanczos", "certify": None}
    assert expected.items() <= record["options"].items()
    assert (record["options"]["source"], record["options"]["target"]) == ("layer(1)", "mlp(2)")
    assert record["tokens"][0]["certificate"] is None


def test_work_that_stops_short_is_no_success(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main("svd", PROMPT, "--model", folder, "-k", 4, "--tokens", 0, "--tol", "1e-12", "--json") == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["tokens"][0]["status"] == "noise_floor"
    assert "stopped short" in err


def test_a_survey_that_was_asked_for_is_a_success(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main("svd", PROMPT, "--model", folder, "-k", 3, "--method", "shared_basis", "--polish", 2, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert sorted(token["status"] for token in record["tokens"]) == ["converged"] * 2 + ["estimate"] * 4
    assert "--polish" in _refused(capsys, "svd", PROMPT, "--model", folder, "--polish", "all")


def test_failed_claim_is_no_success(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert _main("svd", PROMPT, "--model", folder, "-k", 2, "--out", out, "-q") == 0
    vectors = {name: value.clone() for name, value in load_file(out / "vectors.safetensors").items()}
    vectors["U.0.1"][0, 1] += 0.1
    save_file(vectors, out / "vectors.safetensors")
    capsys.readouterr()
    assert _main("verify", out, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"]
    assert any(not claim["holds"] and "token 1" in claim["what"] for claim in found["claims"])


def test_a_disk_that_filled_up_meanwhile_costs_no_result(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(figures, "save_figures", full)
    options = ("-k", 2, "--tokens", 0, "--out", tmp_path / "out", "-q")
    assert _main("svd", PROMPT, "--model", folder, *options) == 2
    out, err = capsys.readouterr()
    assert "TRIPLETS 2/2" in out
    assert "No space left on device" in err and err.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_models_and_families_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main("models") == 0
    text = capsys.readouterr().out
    assert "smollm2" in text
    assert "LlamaForCausalLM" in text
    assert _main("models", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"smollm2", "gemma3-270m"} <= {model["name"] for model in listed["embedded"]}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["svd", ""], "the prompt is empty"),
        (["svd", PROMPT, "-k", "0"], "1 or more"),
        (["svd", PROMPT, "--tokens", "5-3"], "selects no tokens"),
        (["svd", PROMPT, "--tokens=-1-2"], "selects no tokens"),
        (["svd", PROMPT, "--tokens", "0-99999999999"], "more tokens than any prompt"),
        (["svd", "\udcff\udcfe"], "UTF-8"),
        (["svd", PROMPT, "--seed", "9" * 25], "18 digits"),
        (["svd", PROMPT, "--tol", "2"], "between 0 and 1"),
        (["svd", PROMPT, "--dtype", "int8"], "int8"),
        (["svd", PROMPT, "--method", "magic"], "magic"),
        (["svd", PROMPT, "--colour"], "--colour"),
        (["svd", PROMPT, "--model", ""], "--model: the name is empty"),
        (["svd", PROMPT, "--out", " "], "--out: the name is empty"),
        (["svd", PROMPT, "--tokens", ""], "selects no tokens"),
        (["verify", ""], "the name is empty"),
        (["report", "", "--json"], "the name is empty"),
        (["models", "--nosuch"], "--nosuch"),
        (["svd"], "prompt"),
        (["sing"], "sing"),
        ([], "command"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in _refused(capsys, *arguments)


def test_quiet_and_verbose_mean_the_same_everywhere(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert _main("svd", PROMPT, "--model", folder, "-k", 2, "--tokens", 0, "--out", out, "-q") == 0
    for arguments, words in (
        (("verify", out), "claims hold"),
        (("report", out), "report.html"),
        (("models",), "smollm2"),
    ):
        capsys.readouterr()
        assert _main(*arguments, "--quiet") == 0
        quiet = capsys.readouterr()
        assert words in quiet.out and quiet.err == ""
        assert _main(*arguments, "--verbose") == 0
        assert quiet.out in capsys.readouterr().out


def test_the_chat_template_of_the_tokenizer_is_used(
    harmed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(harmed)
    tokenizer.chat_template = "{% for m in messages %}the {{ m['role'] }} {{ m['content'] }} {% endfor %}only"
    tokenizer.save_pretrained(harmed)
    out = tmp_path / "out"
    assert _main("svd", "bridge out", "--chat", "--model", harmed, "-k", 2, "--out", out, "--json", "-q") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["prompt_tokens"] == [["the", "<unk>", "bridge", "out", "only"]]
    assert record["prompts"] == ["bridge out"] and record["options"]["chat"] is True
    assert _main("verify", out) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["the " * 33], "context is 32; shorten"),
        ([PROMPT, "-k", "65"], "from 1 to 64"),
        ([PROMPT, "--tokens", "6"], "token 6 does not exist"),
        ([PROMPT, "--position", "6"], "position 6 does not exist"),
        ([PROMPT, "--source", "layer(3)"], "layer 3 does not exist"),
        ([PROMPT, "--target", "layer"], "write layer(12)"),
        ([PROMPT, "--target", "nowhere"], "target must be"),
        ([PROMPT, "--chat"], "no chat template"),
        ([PROMPT, "--device", "abacus"], "abacus"),
    ],
)
def test_what_the_model_cannot_do_is_one_line(
    folder: Path, tmp_path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert words in _refused(capsys, "svd", *arguments, "--model", folder, "--out", out)
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
    assert words in _refused(capsys, "svd", PROMPT, *arguments, "--model", harmed)


@pytest.mark.parametrize("name", ["a\0b", "n" * 300, "~nobody-of-this-name/x"])
def test_names_that_no_file_can_have_are_one_line(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no model at" in _refused(capsys, "svd", PROMPT, "--model", name)
    place = name if name.startswith("~") else f"{tmp_path}/{name}"
    assert "names no folder" in _refused(capsys, "svd", PROMPT, "--model", folder, "--out", place)


def test_a_record_nested_too_deeply_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text("[" * 100_000)
    assert "damaged" in _refused(capsys, "report", tmp_path)


def test_unknown_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no model at" in _refused(capsys, "svd", PROMPT, "--model", tmp_path / "nowhere")


def test_unsupported_family_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    from transformers import BertConfig, BertLMHeadModel

    place = Path(shutil.copytree(folder, tmp_path / "bert", ignore=shutil.ignore_patterns("*.safetensors", "config*")))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertLMHeadModel(BertConfig(vocab_size=12, is_decoder=True, **sizes)).save_pretrained(place)
    line = _refused(capsys, "svd", PROMPT, "--model", place)
    assert "BertLMHeadModel" in line
    assert "Llama 2 / 3" in line


def test_corrupted_weights_are_one_line(harmed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = harmed / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "cannot load" in _refused(capsys, "svd", PROMPT, "--model", harmed)


def test_corrupt_gguf_file_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "corrupt.gguf").write_bytes(b"GGUF" + bytes(range(256)) * 9)
    assert "corrupt.gguf cannot be read" in _refused(capsys, "svd", PROMPT, "--model", tmp_path / "corrupt.gguf")


def test_weights_that_are_not_numbers_are_one_line(harmed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {name: value.clone() for name, value in load_file(harmed / "model.safetensors").items()}
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
    save_file(weights, harmed / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight" in _refused(capsys, "svd", PROMPT, "--model", harmed)


def test_output_that_is_zero_has_no_error_and_a_run_that_holds(
    harmed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {name: torch.zeros_like(value) for name, value in load_file(harmed / "model.safetensors").items()}
    save_file(weights, harmed / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "out"
    assert _main("svd", PROMPT, "--model", harmed, "-k", 2, "--out", out) == 0
    assert "reconstruction  – (std/std)" in capsys.readouterr().out
    assert _main("verify", out) == 0


def test_output_folder_is_tried_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("mine", encoding="utf-8")
    for out in (tmp_path / "taken", tmp_path / "taken" / "below", tmp_path):
        assert _main("svd", PROMPT, "--model", "no-such-model", "--out", out) == 2
        line = capsys.readouterr().err
        assert "no-such-model" not in line and "names no folder" not in line
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("command", ["verify", "report"])
def test_folder_without_a_run_is_one_line(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "run.json" in _refused(capsys, command, tmp_path)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Take interrupts as a terminal's processes do: those started in the background ignore them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupt_leaves_nothing_behind(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ProgressReporter, "__call__", lambda *_: signal.raise_signal(signal.SIGINT))
    assert _main("svd", PROMPT, "--model", folder, "--method", "lanczos", "--out", tmp_path / "out") == 130
    assert capsys.readouterr().err.splitlines()[-1] == "detjac: interrupted"
    assert not any(tmp_path.iterdir())


STAGES = {
    "loading": ("detjac_lanczos.models.load", "fingerprint_of"),
    "detaching": ("detjac_lanczos.operators.detach", "capture"),
    "decoding": ("detjac_lanczos.runs.analysis", "read_tokens"),
    "drawing": ("detjac_lanczos.reading.figures", "save_figures"),
    "writing": ("detjac_lanczos.runs.folder", "_sync"),
    "renaming": ("detjac_lanczos.runs.folder", "_exchange"),
    "clearing up": ("shutil", "rmtree"),
}


@pytest.fixture(scope="module")
def standing(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run, without figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save_figures", lambda *_: [])
        return analyze(load_model(folder), PROMPT, 2, tokens=[0]).save(tmp_path_factory.mktemp("standing") / "out")


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupt_at_any_stage_leaves_a_whole_folder(
    stage: str, folder: Path, standing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One Ctrl-C comes as a stage begins, others while files are cleared up."""
    out = Path(shutil.copytree(standing, tmp_path / "out"))
    monkeypatch.setattr(figures, "save_figures", lambda *_: [])
    module, name = STAGES[stage]
    place = importlib.import_module(module)
    monkeypatch.setattr(place, name, _interrupted(getattr(place, name)))
    monkeypatch.setattr(shutil, "rmtree", _interrupted(shutil.rmtree))
    assert _main("svd", PROMPT, "--model", folder, "-k", 2, "--tokens", 1, "--out", out, "-q") == 130
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    expected = 1 if stage in ("renaming", "clearing up") else 0
    assert [token.index for token in load_run(out).tokens] == [expected]


def _interrupted(function: Any) -> Any:
    def interrupted(*args: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
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
    assert _main("svd", PROMPT, "--model", folder, "--method", "lanczos") == 130
    assert capsys.readouterr().err.splitlines()[-1] == "detjac: interrupted"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_help_and_bad_arguments_import_no_heavy_library() -> None:
    script = (
        "import sys\nfrom detjac_lanczos.cli import main\n"
        "for arguments in (['--help'], ['svd', '--help'], ['--version'], ['svd', 'x', '-k', '0']):\n"
        "    try: main(arguments)\n"
        "    except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'transformers', 'numpy', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert detjac_lanczos.__version__ in done.stdout


def test_installed_command_refuses_bad_input_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "detjac_lanczos.cli", "svd", PROMPT, "--model", str(tmp_path), "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "config.json" in done.stderr
    assert done.stderr.count("\n") == 1


def _run(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "detjac_lanczos.cli", *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, check=False, **options)


def test_output_in_another_encoding_replaces_what_it_lacks() -> None:
    done = _run("models", stdout=subprocess.PIPE, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"from its Q4_1 file ? Apache-2.0" in done.stdout


def test_a_prompt_in_utf8_is_read_in_any_locale() -> None:
    """Python takes the bytes of arguments apart where the locale cannot read them."""
    escaped = "the bridge 橋".encode().decode("ascii", "surrogateescape")
    assert make_parser().parse_args(["svd", escaped]).prompt == ["the bridge 橋"]


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as closed:
        done = _run("models", stdout=closed)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_output_that_is_full_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        done = _run("models", stdout=full)
    assert done.returncode == 2
    assert (
        done.stderr
        == b"detjac: standard output cannot be written (No space left on device); send the result elsewhere\n"
    )


@pytest.mark.skipif(os.name != "posix", reason="descriptors are closed as POSIX does")
def test_output_that_is_closed_is_one_line() -> None:
    done = _run("models", preexec_fn=lambda: os.close(1))
    assert done.returncode == 2
    assert done.stderr == b"detjac: standard output is closed; leave it open, the result goes there\n"


def test_the_standard_prompt_on_smollm2(
    smollm2: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert _main("svd", "The bridge out of Marin is the", "--model", "smollm2", "-k", 8, "--out", out) == 0
    assert capsys.readouterr().out.count("TRIPLETS 8/8") == 7
    run = load_run(out)
    assert run.tokens[0].singular_values[0] == pytest.approx(63.93, abs=0.01)
    first = [word for word, _ in run.tokens[0].left[0].decoded]
    assert {"only", "most"} & set(first[:5])
    assert run.prediction[0].token == " only"
    assert run.reconstruction.relative_error <= 1e-6
    assert run.work["row_sweeps"] / (7 * 576) <= 0.38
    assert verify(run, smollm2).ok


def test_bench_outside_a_checkout_says_where_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(detjac_lanczos, "__file__", str(tmp_path / "detjac_lanczos" / "__init__.py"))
    assert "checkout" in _refused(capsys, "bench", "--parts", "floor")


@pytest.mark.parametrize("arguments", [("--nosuch",), ("--parts", "nosuch")])
def test_bad_arguments_of_the_bench_are_one_line(arguments: tuple[str, ...]) -> None:
    done = _run("bench", *arguments, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.count(b"\n") == 1 and b"nosuch" in done.stderr
