"""The floor that sweeps are timed against multiplies exactly as much as they do."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import detjac_lanczos as dl
from bench.floor import Floor
from detjac_lanczos.frozen.layout import Layout
from detjac_lanczos.frozen.places import target_place
from detjac_lanczos.models.weights import AlternatingWeight
from tests.tiny_models import DENSE, LENGTH, prompt_ids
from tests.tiny_models.moe import MOE

pytestmark = pytest.mark.usefixtures("one_thread")

MODELS = DENSE | MOE


def _addbmm_flops(_: Any, first: Any, second: Any, *args: Any, **kwargs: Any) -> int:
    """What torch's counter lacks: (b, m, k) times (b, k, n), summed over b; shapes are given."""
    b, m, k = first
    return 2 * b * m * k * second[2]


WIDTH = 3


@pytest.mark.parametrize("name", MODELS)
def test_the_floor_of_a_sweep_is_its_products(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # a few rows meet the whole of an alternating matrix, which is more than the floor counts
    monkeypatch.setattr(AlternatingWeight, "WHOLE_ROWS", 0)
    network = dl.detach((MODELS[name](torch.float64), None), input_ids=prompt_ids(LENGTH))
    batch = network.jacobians()
    program = network.program(-1, target_place("output", network.blocks))
    layout = Layout([replace(j.segment, width=WIDTH) for j in batch.operators], network.lengths, network.device)
    for transposed, product, size in ((False, batch.matmat, program.d_in), (True, batch.rmatmat, program.d_out)):
        floor = Floor(program, layout, transposed=transposed)
        blocks = [(i, torch.ones(size, WIDTH, dtype=torch.float64)) for i in range(len(batch))]
        with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addbmm: _addbmm_flops}) as sweep:
            product(blocks)
        with FlopCounterMode(display=False) as alone:
            floor()
        assert sweep.get_total_flops() == alone.get_total_flops() > 0, transposed
