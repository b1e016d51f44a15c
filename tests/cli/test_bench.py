"""``detjac bench``: bad input is one line, before a model is loaded; its reader may leave, its user interrupt it."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import detjac_lanczos as dl
from bench import whole as bench
from bench.wide_models import WIDE
from detjac_lanczos.cli.process import exit_code
from detjac_lanczos.errors import InputError


def no_model(_: str) -> None:
    pytest.fail("a model was loaded")


@pytest.mark.parametrize(
    ("option", "word", "advice"),
    [
        ("--widen", "x", "'x' is no whole number of 1 or more"),
        ("--widen", "1,0", "'0' is no whole number of 1 or more"),
        ("--repeats", "0", "'0' is no whole number of 1 or more"),
        ("--repeats", "-3", "'-3' is no whole number of 1 or more"),
        ("--out", "missing/bench.json", "missing is no folder; make it"),
        ("--out", "list.json", "list.json holds no figures of a bench"),
        ("--out", ".", ". holds no figures of a bench"),
    ],
)
def test_bad_input_is_one_line(
    option: str,
    word: str,
    advice: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.json").write_text("[]")
    monkeypatch.setattr(dl, "load_model", no_model)
    try:
        code = exit_code(lambda _: bench.main(["--parts", "floor", option, word]))
    except SystemExit as leave:
        code = int(leave.code or 0)
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert advice in err
    assert not Path("missing").exists()


def test_the_help_names_every_part_and_family(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split()).replace("- ", "-")  # argparse breaks lines at hyphens, too
    for names in (bench.PARTS, WIDE):
        assert f"comma-separated, of {', '.join(names)} (default: all)" in shown
    assert "--repeats REPEATS runs of ours on SmolLM2 itself (default: 5); every other count is fixed" in shown
    assert "default: bench/results/bench.json of the checkout" in shown
    assert set(bench.PARTS) == {"roads", "families", *bench._PARTS}


def test_figures_of_another_machine_are_not_kept_beside_its_own(tmp_path: Path) -> None:
    here, figures = bench._machine(), tmp_path / "bench.json"
    for machine, kept in ((here, [1.0]), (here | {"name": "another"}, None), ({}, None)):
        figures.write_text(json.dumps({"machine": machine, "floor": [1.0]}))
        assert bench._figures_so_far(figures, {"glued": ()}).get("floor") == kept


@pytest.mark.parametrize(
    "rows", [{"a": 1}, [{}], None, [3], [{"widening": 4}, {}], [{"widening": "4"}], [{"widening": None}]]
)
def test_rows_that_no_bench_wrote_are_one_line(rows: Any, tmp_path: Path) -> None:
    figures = tmp_path / "bench.json"
    figures.write_text(json.dumps({"machine": bench._machine(), "roads": rows}))
    for again in ({"roads": [1]}, {"glued": ()}):
        with pytest.raises(InputError, match=r"bench\.json holds no figures of a bench; choose another place"):
            bench._figures_so_far(figures, again)


@pytest.mark.parametrize("what", ["cores", "threads", "torch", "detjac_lanczos"])
def test_figures_of_another_state_of_the_machine_are_kept_nowhere(what: str, tmp_path: Path) -> None:
    """A record says once, for all its parts, what they were measured with."""
    here, figures = bench._machine(), tmp_path / "bench.json"
    record = {"floor": [1.0], "roads": [{"widening": 1}, {"widening": 2}], "families": [{"family": "OPT"}]}
    every: dict[str, list[Any]] = {"floor": [], "roads": [1, 2, 4], "families": ["OPT", "GPT-2"]}
    less = {"floor": {}, "roads": {"roads": [2, 4]}, "families": {"families": ["GPT-2"]}}
    for before in (here | {what: "7"}, {key: value for key, value in here.items() if key != what}):
        figures.write_text(json.dumps({"machine": before} | record))
        for part, again in less.items():
            said = f"would keep {part} of a run with {what} {before.get(what)}, now {here[what]}: choose another"
            others = {name: rows for name, rows in every.items() if name != part}
            with pytest.raises(InputError, match=re.escape(said)):
                bench._figures_so_far(figures, others | again)
        assert bench._figures_so_far(figures, every) == {}
    figures.write_text(json.dumps({"machine": here} | record))
    assert bench._figures_so_far(figures, {"glued": ()}) == {"machine": here} | record


def test_the_figures_are_written_though_the_reader_of_the_table_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dl, "load_model", lambda _: SimpleNamespace(tokenizer=lambda _: {"input_ids": []}))
    monkeypatch.setitem(bench._PARTS, "floor", lambda *_: ([1.0], ["a line of the table"]))
    read, write = os.pipe()
    os.close(read)
    figures = tmp_path / "bench.json"
    with open(write, "w", encoding="utf-8") as closed, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", closed)
        assert exit_code(lambda _: bench.main(["--parts", "floor", "--out", str(figures)])) == 0
    assert capsys.readouterr().err == ""
    assert json.loads(figures.read_text())["floor"] == [1.0]


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_between_two_parts_leaves_the_record_with_whole_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dl, "load_model", lambda _: SimpleNamespace(tokenizer=lambda _: {"input_ids": []}))
    monkeypatch.setitem(bench._PARTS, "floor", lambda *_: ([2.0], ["a line of the table"]))
    monkeypatch.setitem(bench._PARTS, "memory", lambda *_: signal.raise_signal(signal.SIGINT))
    figures = tmp_path / "bench.json"
    figures.write_text(json.dumps({"machine": bench._machine(), "floor": [1.0], "memory": {"ours": 1.0}}))
    assert exit_code(lambda _: bench.main(["--parts", "floor,memory", "--out", str(figures)])) == 130
    assert capsys.readouterr() == ("a line of the table\n", "detjac: interrupted\n")
    assert json.loads(figures.read_text()) == {"machine": bench._machine(), "floor": [2.0], "memory": {"ours": 1.0}}
    assert [*tmp_path.iterdir()] == [figures]


def test_a_widening_that_is_cut_off_loses_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def time_methods(_: object, ids: list[int], r: int, repeats: int) -> dict[str, Any]:
        if r == 4:
            raise MemoryError
        return {"widening": r, "new": True}

    loaded = SimpleNamespace(model=None, tokenizer=lambda _: {"input_ids": []})
    monkeypatch.setattr(dl, "load_model", lambda _: loaded)
    monkeypatch.setattr(bench, "widen", lambda *_: None)
    monkeypatch.setattr(bench, "_time_methods", time_methods)
    monkeypatch.setattr(bench, "_print_methods", lambda _: None)
    figures = tmp_path / "bench.json"
    figures.write_text(json.dumps({"machine": bench._machine(), "roads": [{"widening": r} for r in (2, 4, 8)]}))
    with pytest.raises(MemoryError):
        bench.main(["--parts", "roads", "--widen", "1,2,4", "--out", str(figures)])
    new = [{"widening": r, "new": True} for r in (1, 2)]
    assert json.loads(figures.read_text())["roads"] == [*new, {"widening": 4}, {"widening": 8}]


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("program", ["bench", "detjac_lanczos bench"])
def test_an_interrupt_of_its_imports_is_one_line(program: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    command, env = [sys.executable, "-m", *program.split()], os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, cwd=bench.CHECKOUT, env=env, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"detjac: interrupted\n")
