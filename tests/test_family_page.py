"""docs/families.md is what `bench.families` wrote, and has a row for every declared family."""

import json
from typing import Any

import pytest

from bench.families import PAGE, RECORD, record
from bench.family_page import page
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
