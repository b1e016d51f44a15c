"""What the compiler makes of every shipped configuration, for two architectures and with no device there.

With all variations they take minutes: ``python -m bench.kernels`` compiles them, and its table is held here to its
sources and to the limits. Every configuration itself is compiled anew.
"""

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import triton

from bench.kernels import shipped as compiled
from bench.kernels.__main__ import FIGURES
from bench.kernels.limits import SHARED, broken
from bench.kernels.resources import Resources
from bench.kernels.shipped import Case, cases, sources_digest
from detjac_kernels.device.configurations import shipped, tiles

GOOD = Resources(200, 0, 40_000, 500, 128, {"wgmma": 8, "mma": 0})
VARIED = (", float16", "ragged", "plain scales", "in parts")
"""Of a case that is another one but for one thing."""

CASE = Case("GEMM", 90, "64×128×64", lambda: GOOD, 64, 8192, "exact", True)


@pytest.fixture(scope="module")
def table() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FIGURES.read_text(encoding="utf-8"))
    return found


def resources(table: dict[str, Any]) -> dict[str, Resources]:
    names = [field.name for field in fields(Resources)]
    return {
        f"{row['kernel']}, sm_{row['architecture']}, {row['configuration']}": Resources(**{n: row[n] for n in names})
        for row in table["kernels"]
    }


def test_the_table_has_every_shipped_configuration_within_its_limits(table: dict[str, Any]) -> None:
    assert table["sources"] == sources_digest(), "kernels have changed: run python -m bench.kernels"
    kept, everything = resources(table), cases()
    assert [case.name for case in everything] == list(kept)
    assert [sentence for case in everything for sentence in broken(case, kept[case.name])] == []


def test_a_change_of_any_file_that_is_compiled_from_is_seen() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in Path(compiled.__file__).parent.glob("*.py"))
    imported = set(re.findall(r"^from detjac_kernels\.device\.(\w+) import", text, re.MULTILINE))
    assert "launching" in imported and imported <= set(compiled._COMPILED)


def test_every_configuration_compiles_to_what_the_table_says(table: dict[str, Any]) -> None:
    kept, everything = resources(table), cases()
    found = [(case, case.compile()) for case in everything if not any(word in case.what for word in VARIED)]
    assert {case.architecture for case, _ in found} == {80, 90}
    assert len(found) > len(everything) // 3
    assert [sentence for case, made in found for sentence in broken(case, made)] == []
    if triton.__version__ == table["triton"]:
        assert {case.name: made for case, made in found} == {case.name: kept[case.name] for case, _ in found}


def test_every_launch_is_among_the_compiled_ones() -> None:
    for capability in (80, 86, 89, 90, 100, 120):
        for rows in (1, 16, 17, 64, 65, 1000):
            for transposed in (False, True):
                for dtype in (torch.float32, torch.bfloat16, torch.float16):
                    assert tiles(rows, transposed, dtype, capability) in shipped().values()
    names = [case.name for case in cases()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"spilled": 8}, "spills"),
        ({"registers": 256}, "registers"),
        ({"shared": SHARED + 1}, "shared memory"),
        ({"products": {"wgmma": 0, "mma": 8}}, "wgmma"),
        ({"loop": 800}, "per weight"),
    ],
)
def test_each_limit_can_be_broken(change: dict[str, object], word: str) -> None:
    assert broken(CASE, GOOD) == []
    assert [word in sentence for sentence in broken(CASE, replace(GOOD, **change))] == [True]
