"""The caller's hooks: those on modules have no part, and are told of once; those on all modules change no J unsaid."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.modules import module as modules
from torch.utils.flop_counter import FlopCounterMode

import detjac_lanczos as dl
from detjac_lanczos.errors import ModelError
from tests import tiny_models
from tests.tiny_models.dense import llama
from tests.tiny_models.undeclared import UNDECLARED

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = tiny_models.prompt_ids(6)
MODELS = {"Llama": llama, "StableLM": UNDECLARED["StableLM"]}


def louder(module: torch.nn.Module, _: Any, out: Any) -> Any:
    """Change what linear modules give."""
    return 1.1 * out if isinstance(module, torch.nn.Linear) else None


@pytest.mark.parametrize("options", [{}, {"dtype": "float32"}])
@pytest.mark.parametrize("name", MODELS)
def test_hooks_that_are_left_out_are_told_of_once_at_the_line_that_asks(name: str, options: dict[str, Any]) -> None:
    model = MODELS[name](torch.float64)
    model.lm_head.register_forward_hook(lambda *_: None)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        network = dl.detach(tiny_models.loaded(model), input_ids=IDS, **options)
        network.jacobian(0, frozen=False).dense()
        _ = network.jacobian(0, target=dl.mlp(0)).y
    (warning,) = [w for w in told if "forward hooks on lm_head" in str(w.message)]
    assert warning.filename == __file__


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("source", ["embeddings", dl.layer(1)])
def test_a_hook_on_all_modules_that_changes_the_pass_is_refused(name: str, source: Any, dtype: torch.dtype) -> None:
    network = dl.detach(tiny_models.loaded(MODELS[name](dtype)), input_ids=IDS)
    made = network.jacobian(0, frozen=False, source=source)
    made.dense()
    uses: list[Callable[[], Any]] = [
        lambda: made.matmat(torch.ones(made.shape[1], 1, dtype=dtype)),
        lambda: made.rmatmat(torch.ones(made.shape[0], 1, dtype=dtype)),
    ]
    expected = [use() for use in uses]
    with modules.register_module_forward_hook(louder):
        for use in uses:
            with pytest.raises(ModelError, match="other forward hooks on all modules than when"):
                use()
    assert all(torch.equal(use(), value) for use, value in zip(uses, expected, strict=True))


def test_a_hook_on_all_modules_that_was_set_before_the_first_ordinary_jacobian_is_refused() -> None:
    network = dl.detach(tiny_models.loaded(llama()), input_ids=IDS)
    with modules.register_module_forward_hook(louder):
        for use in (lambda: network.jacobian(0, frozen=False), lambda: network.jacobian(0, target=dl.mlp(0)).y):
            with pytest.raises(ModelError, match="other forward hooks on all modules than when"):
                use()
    network.jacobian(0, frozen=False).dense()


def test_hooks_of_torch_itself_only_watch() -> None:
    J = dl.detach(tiny_models.loaded(llama()), input_ids=IDS).jacobian(0, frozen=False)
    expected = J.dense()
    with FlopCounterMode(display=False):
        found = J.dense()
    assert torch.allclose(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("register", ["register_module_full_backward_hook", "register_module_full_backward_pre_hook"])
def test_hooks_on_the_gradients_of_all_modules_are_refused(register: str) -> None:
    network = dl.detach(tiny_models.loaded(llama()), input_ids=IDS)
    J = network.jacobian(0, frozen=False)
    with (
        getattr(modules, register)(lambda *given: tuple(None if g is None else 0 * g for g in given[1])),
        pytest.raises(ModelError, match="hooks on the gradients of all modules"),
    ):
        J.dense()
    assert float(J.dense().norm()) > 0
