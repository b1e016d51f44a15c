"""A copy that never runs: modules and numbers of its own around the same tensors, and nothing else of any size."""

from threading import Lock
from typing import Any

import pytest
import torch

from detjac_lanczos.frozen.copy_at_rest import copy_at_rest
from tests import tiny_models


@pytest.mark.parametrize("name", ["Llama", "Gemma 3", "GPT-2"])
def test_modules_are_its_own_and_tensors_the_models(name: str) -> None:
    model = tiny_models.DENSE[name](torch.float32)
    twin = copy_at_rest(model)
    assert [n for n, _ in twin.named_modules()] == [n for n, _ in model.named_modules()]
    assert not set(map(id, twin.modules())) & set(map(id, model.modules()))
    assert list(map(id, twin.parameters())) == list(map(id, model.parameters()))
    assert [n for n, _ in twin.named_buffers()] == [n for n, _ in model.named_buffers()]
    assert twin.get_output_embeddings() in set(twin.modules())


def test_numbers_stay_and_what_is_large_is_shared() -> None:
    model: Any = tiny_models.llama()
    model.lock, model.large, model.scaling = Lock(), torch.ones(3).numpy(), {"default": 2.0}
    twin = copy_at_rest(model)
    assert twin.config is twin.model.config and twin.config is not model.config
    model.config.rms_norm_eps, model.model.norm.variance_epsilon, model.scaling["default"] = 9.0, 9.0, 9.0
    assert (twin.config.rms_norm_eps, twin.model.norm.variance_epsilon, twin.scaling["default"]) != (9.0, 9.0, 9.0)
    assert twin.scaling["default"] == 2.0 and twin.large is model.large and twin.lock is model.lock


def test_small_tensors_that_are_no_parameters_are_its_own() -> None:
    model: Any = tiny_models.llama()
    model.scale, model.table = torch.tensor(2.0), torch.ones(4, 1024)
    model.register_buffer("shift", torch.tensor([3.0]), persistent=False)
    model.register_buffer("codes", torch.ones(4, 1024))
    twin = copy_at_rest(model)
    model.scale.mul_(2), model.shift.mul_(2)
    assert (float(twin.scale), float(twin.shift)) == (2.0, 3.0)
    assert twin.table is model.table and twin.codes is model.codes


def test_hooks_are_left_out() -> None:
    model = tiny_models.llama()
    model.model.norm.register_forward_hook(lambda *_: None)
    assert not copy_at_rest(model).model.norm._forward_hooks and model.model.norm._forward_hooks
