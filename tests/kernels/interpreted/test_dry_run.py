"""The device bench as a whole, where kernels run in the interpreter: everything is tried, and what fails is told."""

import json
from copy import deepcopy
from typing import Any
from unittest.mock import patch

import pytest
import torch

from bench.gpu import __main__ as bench
from bench.gpu import verify
from bench.gpu.page import page
from bench.gpu.products import sums
from bench.gpu.sizes import sizes


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bench")
    code = bench.main(["--dry", f"--json={folder / 'gpu.json'}", f"--page={folder / 'gpu.md'}"])
    patch.stopall()
    assert code == 0
    found: dict[str, Any] = json.loads((folder / "gpu.json").read_text())
    assert (folder / "gpu.md").read_text() == page(found)
    return found


def test_the_device_bench_runs_to_its_end_on_a_processor(figures: dict[str, Any]) -> None:
    assert len(figures["verified"]) >= 50 and all(row["passed"] for row in figures["verified"])
    assert len(figures["products"]) == 16 and all(row["fused"] > 0 for row in figures["products"])
    assert len(figures["neighbours"]) == 6
    assert all(min(row["kernel"], row["twin"], row["floor"]) > 0 for row in figures["neighbours"])
    assert set(figures["job"]["status"]) == {"converged"}
    assert bench.succeeded(figures)
    assert "dry run" in page(figures) and "predicted" in page(figures)


def test_every_kernel_agrees_with_its_twin_in_bfloat16() -> None:
    rows = verify.verify(sizes(True), (torch.bfloat16,))
    assert len(rows) >= 25
    assert [row for row in rows if not row["passed"]] == []


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
