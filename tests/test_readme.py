"""What README shows is what the package does."""

import ast
import json
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

import detjac_lanczos as dl
from bench import figures_page, records
from detjac_lanczos import reading
from detjac_lanczos.errors import InputError
from detjac_lanczos.frozen.families.glm import GLM4
from detjac_lanczos.models import LoadedModel
from detjac_lanczos.solvers import lockstep

ROOT = Path(__file__).parents[1]
README = ROOT.joinpath("README.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_family_shown_is_the_one_served() -> None:
    (declaration,) = (block for block in BLOCKS if "GLM4 = Family(" in block)
    shown: dict[str, Any] = {}
    exec(declaration, shown)
    assert shown["GLM4"] == GLM4


def test_every_block_is_python() -> None:
    assert len(BLOCKS) >= 5
    for block in BLOCKS:
        compile(block, "README.md", "exec")


@pytest.mark.usefixtures("unpainted")
def test_the_blocks_run_one_after_another_and_give_what_stands_beside_them(
    smollm2: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lockstep, "MEASURED_FROM", math.inf)  # a pass to choose the width by, where all are slow
    monkeypatch.setattr(dl, "load_model", lambda _: smollm2, raising=False)
    names: dict[str, Any] = {}
    values = defaultdict(list)
    for block in BLOCKS:
        for statement in ast.parse(block).body:
            code = ast.unparse(statement)
            if isinstance(statement, ast.Expr):
                values[code].append(eval(code, names))
            else:
                exec(code, names)
    assert values["network.prediction[0].token"] == [" only"]
    assert 1e-7 < values["network.reconstruction.relative_error"][0] < 1e-6
    assert values["result.S[0]"][0] == pytest.approx(63.93, abs=0.01)
    assert values["run.tokens[0].left[0].decoded"][0][:3] == [
        (token, pytest.approx(share, abs=1e-3)) for token, share in (("most", 0.035), ('"', 0.029), ("only", 0.025))
    ]
    run = names["run"]
    assert run.tokens[0].singular_values[1:3] == pytest.approx([3.915, 3.37], rel=2e-3)
    assert all(token.certificate.line.startswith("TRIPLETS 8/8") for token in run.tokens) and len(run.tokens) == 7
    assert run.work["row_sweeps"] / (7 * 576) <= 0.38
    assert values["verify('out/', model).ok"] == [True]
    assert Path("out/report.html").is_file()
    shown = capsys.readouterr().out
    assert "TRIPLETS 8/8, residual ≤ 8.7e-4" in shown
    assert all(f"\n{layer} [" in shown for layer in (0, 7, 15, 22, 29))
    (table,) = re.findall(r"```\n(  # token.*?)```", README, re.DOTALL)
    of_tokens = [line for line in table.splitlines() if re.match(r"  \d | {4}left", line)]
    assert len(of_tokens) == 4 and all(line[:78].rstrip() in shown for line in of_tokens)
    (generated,) = (found for code, found in values.items() if ".generate(" in code)
    unsteered, steered = generated
    assert unsteered != steered and "Bridge" not in unsteered and "Bridge" in steered


def test_the_figures_are_what_was_measured() -> None:
    assert figures_page.renewed(README) == README, "run `python -m bench.figures_page`"
    page = (ROOT / "docs" / "figures.md").read_text("utf-8")
    assert figures_page.page() == page, "run `python -m bench.figures_page`"
    survey = json.loads((ROOT / "bench" / "results" / "survey.json").read_text("utf-8"))
    assert all(found["flagged"] > int(tokens) / 2 for tokens, found in survey.items()) and len(survey) == 2


def test_a_record_shows_in_its_column_and_what_it_lacks_as_a_dash(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fuller record of a machine, with the keys of another, needs no change of the writer."""
    read, files = records.read, records.RECORDS
    whole = read(files["Zen 5"])
    named = {name: {"machine": whole["machine"] | {"name": name}} for name in files}
    bare = {"roads": [], "gemma": {"left out": "not installed"}, "completeness": {"left out": "not installed"}}
    given = {files[name]: (bare if name == "Xeon" else whole) | named[name] for name in files}
    monkeypatch.setattr(records, "read", lambda file: given.get(file) or read(file))
    rows = [line.strip("| ").split(" | ") for line in figures_page.page().splitlines() if line.startswith("| ")]
    compared = [cells for cells in rows if len(cells) == 4 and cells[0] not in ("aim", "---") and "`" not in cells[1]]
    assert len(compared) > 40
    for what, zen5, zen4, xeon in compared[1:]:
        assert zen5 == zen4 != "–" and xeon == "–", what
    assert "45× / 45× / –" in figures_page.renewed(README)


def test_a_column_names_every_clock_of_its_sweeps() -> None:
    found = records.of_machines()
    *rows, last = found[0]["families"]
    found[0] |= {"families": [*rows, last | {"clock": "cpu", "threads": 1}]}
    head = figures_page._families(found).splitlines()[0]
    assert "| Zen 5, wall clock, 2 threads, cpu clock, 1 threads | Zen 4, wall clock, 2 threads |" in head


@pytest.mark.parametrize(
    ("machine", "told"), [({"name": "Zen 6"}, "on Zen 6, and"), ({}, "that it does not name, and")]
)
def test_a_record_of_another_machine_makes_no_page(
    machine: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = records.read
    monkeypatch.setattr(records, "read", lambda file: read(file) | {"machine": machine})
    with pytest.raises(InputError, match=rf"bench/results/bench.json was measured .*{told} the page's text .* a Zen 5"):
        figures_page.page()


def test_every_plot_is_told_of() -> None:
    plots = [name for name in reading.__all__ if name.startswith("plot_")]
    assert len(plots) == 3 and all(name in README for name in plots)
