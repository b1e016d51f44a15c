import json
import os
import subprocess
import sys
from copy import deepcopy
from typing import Any

import pytest
import torch

from bench.gpu import __main__ as bench
from bench.gpu.page import page
from bench.gpu.products import ROADS, break_even, sums
from bench.gpu.timing import time_roads


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bench")
    paths = [f"--json={folder / 'gpu.json'}", f"--page={folder / 'gpu.md'}"]
    run = subprocess.run([sys.executable, "-m", "bench.gpu", "--dry", *paths], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    found: dict[str, Any] = json.loads((folder / "gpu.json").read_text())
    assert (folder / "gpu.md").read_text() == page(found)
    return found


def test_the_device_bench_runs_to_its_end_on_a_processor(figures: dict[str, Any]) -> None:
    assert len(figures["verified"]) >= 25 and all(row["passed"] for row in figures["verified"])
    assert len(figures["products"]) == 16 and all(row["fused"] > 0 for row in figures["products"])
    assert len(figures["neighbours"]) == 6
    assert all(min(row["kernel"], row["twin"], row["floor"]) > 0 for row in figures["neighbours"])
    assert set(figures["job"]["status"]) == {"converged"}
    assert bench.succeeded(figures)
    assert "dry run" in page(figures) and "predicted" in page(figures)


def test_a_dry_job_claims_no_time_of_a_kernel(figures: dict[str, Any]) -> None:
    timed = {name for name in figures["job"] if name.startswith("26 sweeps")}
    assert timed == {"26 sweeps, torch twin", "26 sweeps, floor"}


def test_a_kernel_that_fails_costs_its_own_figures_and_the_exit_code(figures: dict[str, Any]) -> None:
    failed = deepcopy(figures)
    del failed["verified"][0]["difference"]
    failed["verified"][0] |= {"passed": False, "errors": {"difference": "OutOfResources: shared memory"}}
    assert not bench.succeeded(failed)
    assert f"FAILED: {failed['verified'][0]['what']}, torch.float32: OutOfResources" in page(failed)

    for part, name in (("products", "fused"), ("neighbours", "kernel")):
        failed = deepcopy(figures)
        del failed[part][0][name]
        failed[part][0]["errors"] = {name: "PTXASError: bad code"}
        failed["sweeps"] = sums(failed["products"], 2)
        assert not bench.succeeded(failed)
        assert "PTXASError: bad code" in page(failed) and "| failed |" in page(failed)

    failed = deepcopy(figures)
    failed["job"] = {"broken off": "OutOfMemoryError: full"}
    assert not bench.succeeded(failed)
    assert "BROKEN OFF: OutOfMemoryError: full" in page(failed)


def test_an_error_is_kept_beside_the_times_of_the_others() -> None:
    class NoSpaceError(Exception):
        """Not a RuntimeError, as none of Triton's are."""

    def fails() -> None:
        raise NoSpaceError("300000 bytes\nof 232448")

    row = time_roads({"what": "it"}, torch.device("cpu"), {"bad": fails, "good": lambda: None})
    assert row["good"] > 0 and "bad" not in row
    assert row["errors"] == {"bad": "NoSpaceError: 300000 bytes"}


def test_a_dry_run_writes_nowhere_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", os.environ.get("TRITON_INTERPRET", "0"))
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(bench, "run", lambda *arguments: asked.append(arguments) or 0)
    bench.main(["--dry"])
    bench.main([])
    assert asked == [(True, None, None), (False, bench.FIGURES, bench.PAGE)]


@pytest.mark.parametrize(
    ("slower", "expected"), [((2.0, 2.0), None), ((2.0, 1.0), 512), ((2.0, 0.5), 346.67), ((0.5, 0.5), 16)]
)
def test_break_even_is_where_fused_stops_winning(slower: tuple[float, float], expected: float | None) -> None:
    totals = [{"rows": r, "fused": 1.0, "dequantise + GEMM": s} for r, s in zip((16, 512), slower, strict=True)]
    assert break_even(totals) == (None if expected is None else pytest.approx(expected, abs=0.01))


def test_a_road_that_failed_for_one_matrix_has_no_sum_and_no_break_even() -> None:
    names = (*ROADS, "floor, fused", "floor, dequantised")
    table = [{"rows": 16, "transposed": t} | dict.fromkeys(names, 1.0) for t in (False, True)]
    del table[0]["fused"], table[1]["bitsandbytes"]
    (total,) = sums(table, 80)
    assert total["fused"] is None and total["bitsandbytes"] == 80
    assert break_even([total]) is None
