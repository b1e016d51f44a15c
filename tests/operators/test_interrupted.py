"""What an interrupt leaves of a product has no effect: on later products of the network, or on the caller's thread."""

from typing import Any

import pytest
import torch
from torch.autograd import forward_ad

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


@pytest.mark.parametrize("transposed", [False, True])
def test_after_an_interrupt_the_callers_own_float64_pass_rounds_as_before(transposed: bool) -> None:
    model, ids = llama(torch.float64), tiny_models.prompt_ids(2)
    J = dl.detach(tiny_models.loaded(model), input_ids=ids).jacobian(1, frozen=False, source=dl.layer(2))
    X, product = torch.ones(J.shape[1], 1, dtype=torch.float64), J.rmatmat if transposed else J.matmat

    def own() -> torch.Tensor:
        with torch.no_grad():
            return model(torch.tensor(ids)).logits

    before = own()
    for place in interrupts(lambda: product(X), "torch/overrides.py"):
        assert torch.equal(own(), before), place
        assert not torch.overrides._get_current_function_mode_stack(), place


def test_a_mode_that_stays_in_the_thread_after_its_pass_lifts_nothing() -> None:
    left = lifted_to_float64(lambda: torch.overrides._get_current_function_mode())
    with left:
        assert torch.zeros(1).double().float().dtype is torch.zeros(1, dtype=torch.float32).dtype is torch.float32


def test_after_an_interrupt_forward_mode_is_open_to_everybody() -> None:
    network = dl.detach(tiny_models.loaded(llama(torch.float32)), input_ids=tiny_models.prompt_ids(2))
    J = network.jacobian(1, frozen=False, source=dl.layer(2))
    X = torch.ones(J.shape[1], 1)
    before = J.matmat(X)
    files = "operators/autograd.py", "torch/autograd/forward_ad.py", "torch/_functorch/predispatch.py"
    for place in interrupts(lambda: J.matmat(X), *files):
        with forward_ad.dual_level():
            pass
        assert torch.equal(J.matmat(X), before), place


def test_after_an_interrupt_no_level_of_vmap_is_open() -> None:
    network = dl.detach(tiny_models.loaded(llama(torch.float32)), input_ids=tiny_models.prompt_ids(2))
    J = network.jacobian(1, frozen=False, source=dl.layer(2))
    Y = torch.ones(J.shape[0], 2)
    before = J.rmatmat(Y)
    files = "operators/autograd.py", "torch/_functorch/vmap.py", "torch/_functorch/predispatch.py"
    for place in interrupts(lambda: J.rmatmat(Y), *files):
        assert not torch._C._are_functorch_transforms_active(), place
        assert torch.equal(J.rmatmat(Y), before), place


@pytest.mark.parametrize("what", ["J X", "Jᵀ Y", "ordinary J X", "ordinary Jᵀ Y"])
def test_after_an_interrupt_gradients_and_autocast_are_the_callers(what: str) -> None:
    network = dl.detach(tiny_models.loaded(llama(torch.float32)), input_ids=tiny_models.prompt_ids(2))
    J = network.jacobian(1, frozen="ordinary" not in what, source=dl.layer(2))
    X, product = torch.ones(J.shape[1], 1), J.matmat if what.endswith("X") else J.rmatmat
    files = "torch/autograd/grad_mode.py", "torch/amp/autocast_mode.py", "frozen/precision.py"
    with torch.autocast("cpu", torch.bfloat16):
        for place in interrupts(lambda: product(X), *files):
            assert torch.is_grad_enabled() and torch.is_autocast_enabled("cpu"), place
    assert not torch.is_autocast_enabled("cpu")
