"""What the compiler makes of every shipped configuration, for two architectures and with no device there."""

from dataclasses import replace

import pytest
import torch

from bench.kernels.limits import SHARED, broken
from bench.kernels.resources import Resources
from bench.kernels.shipped import Case, cases, compile_all
from detjac_kernels.device.configurations import shipped, tiles

GOOD = Resources(200, 0, 40_000, 500, 128, {"wgmma": 8, "mma": 0})
CASE = Case("GEMM", 90, "64×128×64", lambda: GOOD, 64, 8192, "exact", True)


def test_every_shipped_configuration_is_within_its_limits() -> None:
    found = compile_all()
    assert [sentence for case, resources in found for sentence in broken(case, resources)] == []


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
