"""Hooks and modes that an interrupt leaves of a product have no effect on later ones, or on the caller's own passes."""

from typing import Any

import pytest
import torch

import detjac_lanczos as dl
from detjac_lanczos.frozen.precision import lifted_to_float64
from tests import tiny_models
from tests.interrupts import interrupts
from tests.tiny_models.dense import llama
from tests.tiny_models.undeclared import UNDECLARED

pytestmark = pytest.mark.usefixtures("one_thread")

MODELS = {"Llama": llama, "StableLM": UNDECLARED["StableLM"]}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_hooks_that_an_interrupt_leaves_change_no_product(name: str, transposed: bool) -> None:
    network = dl.detach(tiny_models.loaded(MODELS[name](torch.float32)), input_ids=tiny_models.prompt_ids(3))
    options: dict[str, Any] = {"frozen": False} if name == "Llama" else {}
    J = network.jacobian(1, **options)
    part = network.jacobian(1, source=dl.layer(1), target=dl.layer(1), **options)
    X = torch.ones(J.shape[1], 1)
    product, of_part = (J.rmatmat, part.rmatmat) if transposed else (J.matmat, part.matmat)
    before = product(X)
    for place in interrupts(lambda: of_part(X), "torch/utils/hooks.py"):
        assert torch.equal(product(X), before), place


def test_a_mode_that_stays_in_the_thread_after_its_pass_lifts_nothing() -> None:
    left = lifted_to_float64(lambda: torch.overrides._get_current_function_mode())
    with left:
        assert torch.zeros(1).double().float().dtype is torch.zeros(1, dtype=torch.float32).dtype is torch.float32
