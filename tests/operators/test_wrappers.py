"""A text decoder inside a larger model is found and exact on text, or the model is refused by name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.frozen.families import family_of
from detjac_lanczos.frozen.precision import LiftToFloat64
from detjac_lanczos.models import load_model
from detjac_lanczos.operators import DetachedNetwork, detach, layer, mlp
from detjac_lanczos.reading import decode_left
from tests import tiny_models
from tests.models.conftest import tiny_tokenizer
from tests.oracle_structures import STRUCTURES
from tests.oracles import OracleA, embeddings_of
from tests.tiny_models.dense import llama
from tests.tiny_models.runnable import runnable
from tests.tiny_models.wrappers import WRAPPERS, paligemma, qwen2_5_vl

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = tiny_models.prompt_ids(tiny_models.LENGTH)[0]


@pytest.fixture(params=WRAPPERS)
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a model, and tell the oracles where its decoder lies."""
    _, decoder, make = WRAPPERS[request.param]
    kind = type(runnable(make(torch.float32))).__name__.removesuffix("ForConditionalGeneration")
    inside = STRUCTURES[f"{kind if kind in ('Gemma3', 'Llama4') else 'Llama'}ForCausalLM"]
    monkeypatch.setitem(STRUCTURES, f"{kind}ForConditionalGeneration", replace(inside, decoder=decoder))
    return request.param


def test_jacobians_are_those_of_reverse_mode(name: str) -> None:
    family, _, make = WRAPPERS[name]
    model = make(torch.float64)
    network = detach(load_model(model), input_ids=IDS)
    assert network.family.name == f"{family} in {type(model).__name__}"
    oracle = OracleA(model, embeddings_of(model, IDS))
    last = len(IDS) - 1
    for source, theirs in (("embeddings", "embeddings"), (layer(1), 1)):
        for target, place in (("output", "output"), ("logits", "logits"), ("layer.2", layer(2)), ("mlp.1", mlp(1))):
            found = network.jacobian("joint", source=source, target=place).dense()
            expected = oracle.jacobian(theirs, target, last).flatten(1)
            assert (found - expected).norm() <= 1e-11 * expected.norm(), (source, target)


def test_the_model_is_what_it_computes(name: str) -> None:
    model = WRAPPERS[name][2](torch.float64)
    network = detach(load_model(model), input_ids=IDS)
    with LiftToFloat64(), torch.no_grad():
        logits = model(torch.tensor([IDS]), attention_mask=torch.ones(1, len(IDS)), use_cache=False).logits[0, -1]
    assert (network.streams.logits[0] - logits).norm() <= 1e-12 * logits.norm()
    J = network.jacobian("joint", target="logits")
    assert (J.reconstruction.estimate - logits).norm() <= 1e-12 * logits.norm()
    assert torch.equal(J.y, network.value(J.target, 0, len(IDS) - 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_lower_precisions_pass_the_check(name: str, dtype: torch.dtype) -> None:
    network = detach(load_model(WRAPPERS[name][2](dtype)), input_ids=IDS)
    assert network.reconstruction.norm_error <= 40 * torch.finfo(dtype).eps


def test_a_network_is_saved_and_decoded(tmp_path: Path) -> None:
    model = WRAPPERS["LLaVA"][2](torch.float64)
    loaded = load_model(model)
    network = detach(loaded, input_ids=IDS)
    again = DetachedNetwork.load(network.save(tmp_path), loaded)
    assert again.family == network.family
    assert torch.equal(again.jacobian(0).dense(), network.jacobian(0).dense())
    (decoded, *_), _ = decode_left(network, network.jacobian(0).y[:, None], network.jacobian(0).y, "output")
    assert decoded[0].id == int(network.streams.logits[0].argmax())


@pytest.mark.parametrize("kind", ["Gemma 3", "Mistral 3", "Llama 4", "LLaVA"])
def test_a_folder_is_loaded_as_what_it_is(kind: str, tmp_path: Path) -> None:
    """Of a Llama 4 transformers loads the language model alone."""
    model = runnable(WRAPPERS[kind][2](torch.float32))
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert (type(loaded.model) is type(model)) == (kind != "Llama 4")
    network = detach(loaded, "w3 w5 w7 w1")
    expected = detach(load_model(model), input_ids=list(network.prompts[0].ids))
    assert torch.equal(network.streams.logits, expected.streams.logits)
    assert torch.equal(network.jacobian(1).dense(), expected.jacobian(1).dense())


def test_what_does_more_with_text_is_refused() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        with pytest.raises(UnsupportedModelError, match="its logits are not the model's"):
            detach(load_model(paligemma(dtype)), input_ids=IDS)


def test_a_decoder_that_nobody_declares_is_no_family() -> None:
    with pytest.raises(UnsupportedModelError, match="family of Qwen2_5_VLForConditionalGeneration is not supported"):
        family_of(qwen2_5_vl(torch.float32))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("make", [llama, tiny_models.gemma, tiny_models.DENSE["GPT-2"]])
def test_heads_may_be_tied_to_the_embeddings_or_not(make: Any, tied: bool) -> None:
    model = make(torch.float64, tie_word_embeddings=tied)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    network = detach(load_model(model), input_ids=IDS)
    with LiftToFloat64(), torch.no_grad():
        logits = model(torch.tensor([IDS]), attention_mask=torch.ones(1, len(IDS)), use_cache=False).logits[0, -1]
    assert (network.streams.logits[0] - logits).norm() <= 1e-12 * logits.norm()
    J, to_output = (network.jacobian("joint", target=target).dense() for target in ("logits", "output"))
    head = model.lm_head.weight.detach()
    assert (J - head @ to_output).norm() <= 1e-13 * J.norm()
