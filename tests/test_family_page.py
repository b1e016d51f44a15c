"""docs/families.md is what `bench.families` wrote, and has a row for every declared family."""

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import exactness, families
from bench.exactness import Figures
from bench.families import PAGE, RECORD, record
from bench.family_page import describe, page
from bench.undeclared import row as undeclared_row
from detjac_lanczos.frozen.families import FAMILIES
from tests.test_layout import ROOT

AGAINST_FLOAT64 = ("token_truth", "reverse_truth", "swept_truth")
"""Figures of float32 alone."""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return json.loads((ROOT / RECORD).read_text())


def test_every_declared_family_has_a_row(found: dict[str, Any]) -> None:
    rows = {row["name"]: row["classes"] for row in found["families"]}
    assert list(rows) == [family.name for family in FAMILIES]
    assert all(set(family.classes) <= set(rows[family.name]) for family in FAMILIES)
    assert all(
        describe(family)["frozen"] == row["frozen"] for family, row in zip(FAMILIES, found["families"], strict=True)
    )
    table = [line.split(" | ")[0] for line in (ROOT / PAGE).read_text().splitlines() if line.startswith("| ")]
    for family in FAMILIES:
        assert table.count(f"| {family.name}") == 2, "run `make families`"


def test_the_page_is_what_the_command_wrote(found: dict[str, Any]) -> None:
    assert (ROOT / PAGE).read_text() == page(found), "run `make families`"


def test_undeclared_decoders_are_exact_and_can_be_measured_again(found: dict[str, Any]) -> None:
    rows = {row["class"]: row for row in found["undeclared"]}
    understood = {name: row for name, row in rows.items() if "route" in row}
    assert len(understood) > 25
    for row in understood.values():
        assert row["route"] == "autograd"
        assert row["reverse"] is None or row["reverse"] <= 1e-11
        assert row["reconstruction"] <= 1e-13 and row["reconstruction32"] <= 1e-6
    assert "MambaForCausalLM" in rows and "refused" in rows["MambaForCausalLM"]
    again = undeclared_row("BitNetForCausalLM")
    assert again.keys() == rows["BitNetForCausalLM"].keys() and again["reverse"] <= 1e-11


@pytest.mark.parametrize("name", ["Ministral 3", "OPT (post-norm)"])
def test_what_is_recorded_can_be_measured_again(found: dict[str, Any], name: str) -> None:
    again = record(next(family for family in FAMILIES if family.name == name))
    row = next(row for row in found["families"] if row["name"] == name)
    assert list(again) == list(row)
    assert again["models"] == row["models"]
    assert again["offset"] == pytest.approx(row["offset"], rel=1e-5)
    for precision, bar, left_out in (("float64", 1e-11, ("offset", *AGAINST_FLOAT64)), ("float32", 1e-5, ("offset",))):
        for figures in (again[precision], row[precision]):
            assert all(0 < value <= bar for key, value in figures.items() if key not in left_out)


def test_a_row_has_the_worst_of_every_model_and_every_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measure(make: Any, dtype: torch.dtype, freeze: str) -> Figures:
        asked.append((dtype, freeze))
        return Figures(norm=float(freeze == "up"), entry=float(freeze == "gate"), offset=0.25 * len(asked))

    monkeypatch.setattr(families, "measure", measure)
    for name, choices in (("Ministral 3", ["gate", "up", "half"]), ("OPT (post-norm)", ["gate"])):
        asked.clear()
        row = record(next(family for family in FAMILIES if family.name == name))
        assert row["freeze"] == choices
        assert asked == [(d, freeze) for _ in row["models"] for freeze in choices for d in families.PRECISIONS]
        for precision in ("float64", "float32"):
            assert row[precision]["norm"] == float("up" in choices) and row[precision]["entry"] == 1
        assert row["offset"] == [0.25, 0.25 * len(asked)]


def test_errors_of_one_token_are_not_hidden_by_larger_ones() -> None:
    """Of three tokens the smallest is off by a tenth; of a token without influence anything is wrong."""
    generator = torch.Generator().manual_seed(0)
    expected = torch.randn(5, 3, 4, generator=generator, dtype=torch.float64) * torch.tensor([1e3, 1.0, 1e-3])[:, None]
    found = expected.clone()
    found[:, 2] *= 1.1
    assert exactness._worst_token(found, expected) == pytest.approx((0.1, 0.1))
    assert exactness._errors(found, expected)[0] < 1e-6
    zero = torch.zeros(5, 4)
    assert exactness._errors(zero, zero) == (0.0, 0.0)
    assert exactness._errors(zero + 1e-30, zero) == (math.inf, math.inf)


@pytest.mark.parametrize("way", ["matmat", "rmatmat"])
def test_a_transpose_that_is_none_is_seen(way: str) -> None:
    A = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    products = {"matmat": lambda X: A @ X, "rmatmat": lambda Y: A.T @ Y}

    def adjointness() -> float:
        joint = SimpleNamespace(shape=A.shape, dtype=A.dtype, **products)
        return exactness._adjointness(joint, torch.Generator().manual_seed(1)).adjoint

    assert adjointness() < 1e-14
    true = products[way]
    products[way] = lambda block: 2 * true(block)
    assert adjointness() > 1e-3


def test_figures_are_the_worse_of_two() -> None:
    one, other = Figures(norm=1.0, offset=2.0), Figures(norm=3.0, pinned=4.0)
    assert one.worst(other) == other.worst(one) == Figures(norm=3.0, pinned=4.0, offset=2.0)
