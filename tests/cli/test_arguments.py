"""Arguments, the list of models and the bench: what is said before any work."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import detjac_lanczos
from detjac_lanczos.cli.parser import make_parser
from detjac_lanczos.runs import plan
from tests.command_line import call, refused
from tests.tiny_llama import PROMPT


def test_models_and_families_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("models") == 0
    text = capsys.readouterr().out
    assert "smollm2" in text
    assert "LlamaForCausalLM" in text
    assert call("models", "--json") == 0
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
        (["svd", PROMPT, "--seed", str(2**32)], "from 0 to 2³² - 1"),
        (["svd", PROMPT, "--seed=-1"], "from 0 to 2³² - 1"),
        (["svd", PROMPT, "--tol", "2"], "between 0 and 1"),
        (["svd", PROMPT, "--tol", "0"], "between 0 and 1"),
        (["svd", PROMPT, "--energy", "1"], "between 0 and 1"),
        (["svd", PROMPT, "--delta", "nan"], "between 0 and 1"),
        (["svd", PROMPT, "--threshold", "0"], "above 0"),
        (["svd", PROMPT, "--threshold", "inf"], "above 0"),
        (["svd", PROMPT, "--dtype", "int8"], "int8"),
        (["svd", PROMPT, "--method", "magic"], "magic"),
        (["svd", PROMPT, "--colour"], "--colour"),
        (["svd", PROMPT, "--verb"], "unknown argument '--verb'"),
        (["verify", "out", "--dev", "cpu"], "unknown argument '--dev'"),
        (["svd", PROMPT, "-5x"], "unknown argument '-5x'"),
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
    assert words in refused(capsys, *arguments)


def test_defaults_of_a_plan_are_those_of_the_library() -> None:
    planned = vars(make_parser().parse_args(["plan", "--tokens", "8"]))
    usual = {name: option.default for name, option in inspect.signature(plan).parameters.items()}
    common = (planned.keys() & usual.keys()) - {"model", "tokens"}
    assert len(common) == len(usual) - 2
    assert {name: planned[name] for name in common} == {name: usual[name] for name in common}


def test_the_bench_gets_every_word_and_paths_are_those_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called, path = [], sys.path.copy()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bench.whole.main", lambda words: called.append((words, Path.cwd(), sys.path[0])) or 3)
    assert call("bench", "--parts", "floor", "-5x", "--out", "x.json") == 3
    root = Path(detjac_lanczos.__file__).parents[1]
    assert called == [(["--parts", "floor", "-5x", "--out", "x.json"], tmp_path, str(root))]
    assert sys.path == path


def test_tokens_from_the_end_need_no_equals_sign() -> None:
    for words, tokens in (("-1", [-1]), ("-1,0", [-1, 0]), ("-2,-1,0-1", [-2, -1, 0, 1])):
        assert make_parser().parse_args(["svd", PROMPT, "--tokens", words]).tokens == tokens


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


def test_a_prompt_in_utf8_is_read_in_any_locale() -> None:
    """Python takes the bytes of arguments apart where the locale cannot read them."""
    escaped = "the bridge 橋".encode().decode("ascii", "surrogateescape")
    assert make_parser().parse_args(["svd", escaped]).prompt == ["the bridge 橋"]


def test_bench_outside_a_checkout_says_where_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(detjac_lanczos, "__file__", str(tmp_path / "detjac_lanczos" / "__init__.py"))
    assert "checkout" in refused(capsys, "bench", "--parts", "floor")


def test_bad_arguments_of_the_bench_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nosuch" in refused(capsys, "bench", "--parts", "nosuch")
