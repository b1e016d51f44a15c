"""A model that was altered after it passed its check is checked in full again, and one that was not is not."""

import gc
import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.operators import detach
from detjac_lanczos.operators.what_runs import what_runs
from tests import tiny_models

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = tiny_models.prompt_ids(5)[0]


def block(model: Any) -> Any:
    return model.model.layers[1]


def forward(self: Any, x: Any) -> Any:
    return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x).tanh())


class Activation(nn.SiLU):
    pass


def with_a_swapped_place(model: Any) -> None:
    modules = block(model)._modules
    modules["input_layernorm"], modules["mlp"] = modules["mlp"], modules["input_layernorm"]


ALTERED: dict[str, Callable[[Any], Any]] = {
    "forward": lambda model: setattr(block(model).mlp, "forward", types.MethodType(forward, block(model).mlp)),
    "another method": lambda model: setattr(block(model).input_layernorm, "_norm", lambda x: x),
    "class": lambda model: setattr(block(model).mlp.act_fn, "__class__", Activation),
    "number": lambda model: setattr(block(model).self_attn, "scaling", 0.1),
    "configuration": lambda model: setattr(model.config, "rms_norm_eps", 0.1),
    "bias": lambda model: setattr(block(model).mlp.up_proj, "bias", nn.Parameter(torch.ones(1))),
    "hook": lambda model: block(model).mlp.register_forward_hook(lambda *_: None),
    "hook before": lambda model: block(model).mlp.register_forward_pre_hook(lambda *_: None),
    "fewer blocks": lambda model: model.model.layers.pop(0),
    "places": with_a_swapped_place,
}


@pytest.mark.parametrize("kind", ALTERED)
def test_what_runs_is_told_from_what_ran(kind: str) -> None:
    model = tiny_models.llama()
    before = what_runs(model)
    ALTERED[kind](model)
    after = what_runs(model)
    assert before != after
    assert after == what_runs(model)


def test_methods_of_classes_and_hooks_on_all_modules_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.llama()
    before = what_runs(model)
    with monkeypatch.context() as patched:
        patched.setattr(type(block(model).mlp), "forward", forward)
        assert what_runs(model) != before
    handle = register_module_forward_hook(lambda *_: None)
    assert what_runs(model) != before
    handle.remove()
    assert what_runs(model) == before


def test_a_function_made_anew_is_another_one() -> None:
    """Though it may lie where the first one lay."""
    model = tiny_models.llama()
    seen = []
    for _ in range(20):
        block(model).mlp.forward = types.MethodType(lambda self, x: x, block(model).mlp)
        seen.append(what_runs(model))
    assert all(a != b for i, a in enumerate(seen) for b in seen[:i])


def test_passes_training_and_other_weights_are_no_alteration() -> None:
    model = tiny_models.llama()
    before = what_runs(model)
    detach((model, None), input_ids=IDS)
    model.train()
    for parameter in model.parameters():
        parameter.data *= 2
    assert what_runs(model) == before


def test_an_altered_model_is_checked_in_full_each_time_and_let_go() -> None:
    """A small branch beside a large stream: nothing but the check of the parts shows it."""
    model = tiny_models.llama(torch.float32)
    block(model).mlp.down_proj.weight.data *= 1e-5
    detach((model, None), input_ids=IDS)
    own = block(model).mlp
    for _ in range(2):  # one that was refused has not passed
        own.forward = types.MethodType(forward, own)
        with pytest.raises(UnsupportedModelError, match=r"mlp\.1 gives something else than the model's"):
            detach((model, None), input_ids=IDS)
    own.forward = types.MethodType(type(own).forward, own)
    detach((model, None), input_ids=IDS)
    alive = weakref.ref(model)
    del model, own
    gc.collect()
    assert alive() is None
