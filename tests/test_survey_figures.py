"""What the bench of surveys counts: errors of estimates, flags that were missing, intervals that fail."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import survey
from bench.survey import PAGE, errors, polish_figures
from bench.survey_page import table
from tests.test_layout import ROOT


def test_the_table_is_what_was_measured() -> None:
    figures = json.loads((ROOT / "bench" / "results" / "survey.json").read_text())
    assert table(figures) in (ROOT / PAGE).read_text(), "run `python -m bench.survey`"


def estimate(value: float, low: float, high: float) -> Any:
    parts = {"sigma_1": (low, high), "values": torch.tensor([value], dtype=torch.float64)}
    return SimpleNamespace(missed=SimpleNamespace(**parts, probes=48, basis=torch.zeros(68, 3)))


def test_estimates_are_held_against_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """σ_1 is 10: off by 4, 6 and 8 %, 6 % too low and not flagged; one interval begins above it, one ends below."""
    results = [estimate(10.4, 9.5, 11.0), estimate(9.4, 9.0, 9.9), estimate(10.8, 10.1, 12.0)]
    monkeypatch.setattr(survey, "flagged", lambda _: [2])
    found = errors(torch.full((3,), 10.0, dtype=torch.float64), results)
    assert (found["probes"], found["basis"], found["flagged"]) == (48, 68, 1)
    assert (found["above 5 %"], found["above 5 % and not flagged"]) == (2, 1)
    assert found["outside the interval"] == 2
    assert found["estimate"] == {
        "median": pytest.approx(0.06),
        "90th percentile": pytest.approx(0.076),
        "worst": pytest.approx(0.08),
    }
    assert found["lower bound"]["worst"] == pytest.approx(0.1)
    assert found["median of the upper bound"] == pytest.approx(0.1)


def test_polished_tokens_are_held_against_their_own_truth() -> None:
    def polished(value: float, line: str, residual: float) -> Any:
        certificate, relative = SimpleNamespace(line=line), torch.tensor([[0.0, residual]])
        work = SimpleNamespace(row_sweeps=5.0)
        return SimpleNamespace(
            S=torch.tensor([value]), certificate=certificate, relative=relative, work=work, method="dense"
        )

    exact = torch.tensor([8.0, 10.0, 4.0])
    made = [polished(9.0, "TRIPLETS 8/8, more", 1e-6), polished(4.0, "TRIPLETS 7/8, more", 1e-5)]
    found = polish_figures(exact, made, [1, 2], 100.0)
    assert found["claims"] == {"TRIPLETS 8/8": 1, "TRIPLETS 7/8": 1}
    assert (found["tokens"], found["methods"], found["share of dense rows"]) == (2, ["dense"], 0.1)
    assert found["largest error of σ_1"] == pytest.approx(0.1)
    assert found["largest residual"] == pytest.approx(1e-5)
