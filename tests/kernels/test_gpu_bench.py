import os
import subprocess
import sys
from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.gpu import __main__ as bench
from bench.gpu import job
from bench.gpu.packed import random_llama
from bench.gpu.products import ROADS, break_even, sums
from bench.gpu.sizes import sizes
from bench.gpu.timing import time_roads
from detjac_lanczos import detach


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
    bench.main([])
    bench.main(["--dry"])
    assert os.environ["TRITON_INTERPRET"] == "1"
    assert asked == [(False, bench.FIGURES, bench.PAGE), (True, None, None)]


def test_no_kernel_is_imported_before_it_is_known_what_runs_it() -> None:
    code = "import sys, bench.gpu.__main__; sys.exit(bool({'triton', 'detjac_kernels'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


class NothingReadOnTheHost(TorchDispatchMode):
    """Stands for the capture of a CUDA graph, which refuses what waits for a number."""

    def __torch_dispatch__(self, work: Any, types: Any, given: Any = (), options: Any = None) -> Any:
        if "_local_scalar_dense" in str(work):
            raise RuntimeError("operation not permitted when stream is capturing")
        return work(*given, **(options or {}))


def test_sweeps_can_be_captured_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    size = sizes(True)
    ids = [list(range(size.tokens))]
    operator = detach((random_llama(size.config, size.device), None), input_ids=ids).jacobian(token="joint")
    for name in ("Stream", "stream", "current_stream", "CUDAGraph", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    monkeypatch.setattr(torch.cuda, "graph", lambda captured: NothingReadOnTheHost())
    found = job.graph(lambda: job.sweeps(operator, 1, size), replace(size, device=torch.device("cuda")))
    assert set(found) == {"26 sweeps", "26 sweeps, launched"}


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
