"""Products with no columns at all."""

from typing import Any

import pytest
import torch

from detjac_lanczos.operators import DetachedNetwork, detach
from tests import tiny_models
from tests.every_block import every_block, unchecked
from tests.tiny_models.dense import DENSE
from tests.tiny_models.moe import MOE
from tests.tiny_models.undeclared import UNDECLARED

pytestmark = pytest.mark.usefixtures("one_thread")

MODELS = {"Llama": DENSE["Llama"], "gpt-oss": MOE["gpt-oss"], "StableLM": UNDECLARED["StableLM"]}


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "ordinary"])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_they_have_no_columns(make: Any, frozen: bool) -> None:
    assert_no_columns(detach(tiny_models.loaded(make(torch.float64)), input_ids=tiny_models.prompt_ids(4)), frozen)


def test_they_have_no_columns_where_every_sweep_makes_the_factors_again() -> None:
    loaded = tiny_models.loaded(DENSE["Llama"](torch.float64))
    with every_block("rebuild"), unchecked():
        network = detach(loaded, input_ids=tiny_models.prompt_ids(4), memory="1GiB")
    assert_no_columns(network, frozen=True)


def assert_no_columns(network: DetachedNetwork, frozen: bool) -> None:
    batch = network.jacobians([0, 1], frozen=frozen)
    for J in (batch.operators[1], network.jacobian("joint", frozen=frozen)):
        d_out, d_in = J.shape
        assert J.matmat(torch.empty(d_in, 0, dtype=J.dtype)).shape == (d_out, 0)
        assert J.rmatmat(torch.empty(d_out, 0, dtype=J.dtype)).shape == (d_in, 0)
    d_out, d_in = batch.shapes[0]
    none, Y = torch.empty(d_in, 0, dtype=batch.dtype), torch.ones(d_in, 2, dtype=batch.dtype)
    assert batch.matmat([]) == batch.rmatmat([]) == []
    assert batch.matmat_sum([(0, none), (1, none)]).shape == (d_out, 0)
    assert [part.shape for part in batch.rmatmat_shared(none[:d_out])] == [(d_in, 0)] * 2
    assert [part.shape for part in batch.matmat([(0, none), (1, Y)])] == [(d_out, 0), (d_out, 2)]
    assert network.apply(torch.empty(0, 4, d_in, dtype=batch.dtype)).shape == (0, d_out)
