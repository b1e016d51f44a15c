"""What an interrupt leaves of a product has no effect: on later products of the network, or on the caller's thread."""

from typing import Any

import pytest
import torch

import detjac_lanczos as dl
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
    before = J.matmat(X), J.rmatmat(X)
    for place in interrupts(lambda: (part.rmatmat if transposed else part.matmat)(X), "torch/utils/hooks.py"):
        after = J.matmat(X), J.rmatmat(X)
        assert all(map(torch.equal, after, before)), place
