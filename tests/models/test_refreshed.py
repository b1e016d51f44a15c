"""What is made of a model that was trained since it was loaded names the weights that it was made of."""

import copy
import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

import detjac_lanczos as dl
from detjac_lanczos.errors import RunFileError
from detjac_lanczos.frozen.converted import load_converted
from detjac_lanczos.models import LoadedModel, load_model, refreshed
from tests import tiny_models

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = tiny_models.prompt_ids(4)[0]


def mlp(model: Any) -> Any:
    return model.model.layers[1].mlp


def by_a_step(model: Any) -> None:
    with torch.no_grad():
        mlp(model).up_proj.weight[0] += 1


def by_data(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data *= 2


def by_other_memory(model: Any) -> None:
    mlp(model).up_proj.weight.data = torch.ones_like(mlp(model).up_proj.weight)


def by_another_parameter(model: Any) -> None:
    mlp(model).up_proj.weight = nn.Parameter(2 * mlp(model).up_proj.weight.detach())


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Fingerprints that are taken again."""
    seen: list[Any] = []
    own = refreshed.fingerprint_of

    def counted(*args: Any, **options: Any) -> str:
        seen.append(args)
        return own(*args, **options)

    monkeypatch.setattr(refreshed, "fingerprint_of", counted)
    return seen


@pytest.mark.parametrize("change", [by_a_step, by_data, by_other_memory, by_another_parameter])
def test_a_fingerprint_is_taken_again_where_weights_moved(change: Callable[[Any], None], taken: list[Any]) -> None:
    model = tiny_models.llama()
    loaded = load_model((model, "a tokenizer"))
    assert load_model(loaded) is loaded and not taken
    change(model)
    again = load_model(loaded)
    assert again.fingerprint == load_model(model).fingerprint != loaded.fingerprint
    assert again == replace(loaded, fingerprint=again.fingerprint)
    assert load_model(replace(loaded, tokenizer=None)).fingerprint == load_model(again).fingerprint == again.fingerprint
    assert len(taken) == 1


def test_it_is_not_where_they_only_ran(taken: list[Any], folder: Path) -> None:
    for loaded in (load_model(folder), load_model(tiny_models.llama())):
        loaded.model(torch.tensor([IDS])).logits.sum().backward()
        network = dl.detach(loaded, input_ids=IDS)
        assert network.loaded is load_model(loaded) is loaded
    converted = load_converted(loaded, "bfloat16")
    assert load_converted(converted) is converted
    assert not taken


def test_that_of_an_adapter_at_rest_counts() -> None:
    model = peft.get_peft_model(tiny_models.llama(), peft.LoraConfig(target_modules=["v_proj"]))
    model.add_adapter("rest", peft.LoraConfig(target_modules=["v_proj"]))
    loaded = load_model(model)
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if ".rest." in name).add_(1)
    assert load_model(loaded).fingerprint == load_model(model).fingerprint != loaded.fingerprint


def test_a_model_that_was_made_by_hand_or_sent_is_looked_at() -> None:
    model = tiny_models.llama()
    assert load_model(LoadedModel(model, None, "it", "")).fingerprint == load_model(model).fingerprint


def test_weights_that_leave_the_model_are_let_go() -> None:
    loaded = load_model(tiny_models.llama())
    old = weakref.ref(mlp(loaded.model).up_proj.weight)
    by_another_parameter(loaded.model)
    gc.collect()
    assert old() is None


def test_networks_and_runs_name_the_weights_that_they_were_made_with(tmp_path: Path) -> None:
    model = tiny_models.llama()
    before = copy.deepcopy(model)
    loaded = load_model(model)
    by_a_step(model)
    network = dl.detach(loaded, input_ids=IDS)
    network.save(tmp_path)
    assert dl.analyze(network, k=1, tokens=[0]).record["fingerprint"] == load_model(model).fingerprint
    with pytest.raises(RunFileError, match="other weights"):
        dl.DetachedNetwork.load(tmp_path, before)
    for now in (loaded, model):
        found = dl.DetachedNetwork.load(tmp_path, now).jacobian(0).dense()
        assert torch.equal(found, network.jacobian(0).dense())
