"""What memory must hold for dense, and that what cannot be asked stops nobody."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detjac_lanczos.solvers import room, svd
from tests.unreadable import no_descriptor_left

_STATUS = Path("/proc/self/status")
_PEAK = """
import sys, torch
from pathlib import Path
def resident(field):
    return int(Path("/proc/self/status").read_text().split(field + ":")[1].split()[0]) * 1024
torch.set_num_threads(1)
rows, columns = int(sys.argv[1]), int(sys.argv[2])
matrix = torch.randn(rows, columns, dtype=getattr(torch, sys.argv[3]))
torch.linalg.svd(matrix[:99, :99], full_matrices=False)  # what is loaded for it is loaded
before = resident("VmRSS")
parts = torch.linalg.svd(matrix, full_matrices=False)
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(not _STATUS.exists() or "VmHWM" not in _STATUS.read_text(), reason="no peak is told here")
@pytest.mark.parametrize("shape", [(1500, 1500), (3000, 750), (750, 3000)], ids=["square", "tall", "wide"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_an_svd_holds_beside_the_matrix_is_counted(shape: tuple[int, int], dtype: torch.dtype) -> None:
    command = [sys.executable, "-c", _PEAK, *map(str, shape), str(dtype).removeprefix("torch.")]
    held = int(subprocess.run(command, capture_output=True, check=True, text=True).stdout) / dtype.itemsize
    counted = room._beside(shape) - math.prod(shape)  # the scaled one is made before
    assert 0.7 * counted < held < 1.3 * counted


def test_memory_that_cannot_be_asked_for_want_of_descriptors_is_not_missed() -> None:
    A = torch.eye(30)
    expected = svd(A, 20, method="dense")  # what is imported for it is imported
    with no_descriptor_left():
        assert torch.equal(svd(A, 20, method="dense").S, expected.S)
        assert svd(A, 20).method == "dense"
