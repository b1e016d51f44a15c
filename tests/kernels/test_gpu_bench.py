import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu.products import break_even


def test_the_device_bench_runs_to_its_end_on_a_processor(tmp_path: Path) -> None:
    paths = [f"--json={tmp_path / 'gpu.json'}", f"--page={tmp_path / 'gpu.md'}"]
    run = subprocess.run([sys.executable, "-m", "bench.gpu", "--dry", *paths], capture_output=True, text=True)
    figures = json.loads((tmp_path / "gpu.json").read_text())
    assert len(figures["verified"]) >= 25 and all(row["passed"] for row in figures["verified"])
    assert len(figures["products"]) == 16 and all(row["fused"] > 0 for row in figures["products"])
    assert run.returncode == 0, run.stdout + run.stderr
    assert set(figures["job"]["status"]) == {"converged"}
    page = (tmp_path / "gpu.md").read_text()
    assert "dry run" in page and "predicted" in page


@pytest.mark.parametrize(("slower", "expected"), [((2.0, 2.0), None), ((2.0, 1.0), 512), ((0.5, 0.5), 16)])
def test_break_even_is_the_first_row_count_that_fused_does_not_win(slower: tuple[float, float], expected: int) -> None:
    totals = [{"rows": r, "fused": 1.0, "dequantise + GEMM": s} for r, s in zip((16, 512), slower, strict=True)]
    assert break_even(totals) == expected
