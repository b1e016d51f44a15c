"""A live model in another dtype or elsewhere: a copy with the tensors a load would give, the caller's as before."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from bench.allocations import with_peak
from detjac_lanczos.errors import InputError, ModelError, UnsupportedModelError
from detjac_lanczos.frozen.converted import load_converted
from detjac_lanczos.models import load_model
from detjac_lanczos.models.conversion import convert
from detjac_lanczos.operators import detach
from detjac_lanczos.runs import analyze, verify
from tests import tiny_models
from tests.frozen.test_capture import assert_same, state, tensors
from tests.imitated_devices import SECOND, Devices
from tests.offloading import in_host_memory
from tests.tiny_models.moe import MOE
from tests.tiny_models.packed import quantised

pytestmark = pytest.mark.usefixtures("one_thread")

MODELS = tiny_models.DENSE | MOE
IDS = tiny_models.prompt_ids(7)[0]


def read(folder: Path, kind: type[Any], dtype: torch.dtype) -> Any:
    """The stored model as transformers loads it in a dtype."""
    return kind.from_pretrained(folder, dtype=dtype).eval()


@pytest.mark.parametrize("name", ["Qwen2", "Gemma 3", "gpt-oss", "OPT"])
def test_a_copy_in_float64_is_the_model_loaded_in_float64(name: str, tmp_path: Path) -> None:
    """Rotary frequencies, and Gemma's scale of embeddings, are other numbers than those of float32 converted."""
    model = MODELS[name](torch.float32)
    model.save_pretrained(tmp_path)
    loaded, before = load_model(model), state(model)
    found = detach(loaded, input_ids=IDS, dtype="float64")
    expected = detach(load_model(read(tmp_path, type(model), torch.float64)), input_ids=IDS)
    assert_same(before, state(model))
    assert found.loaded.fingerprint == expected.loaded.fingerprint != loaded.fingerprint
    assert found.model.config.dtype == found.dtype == torch.float64
    assert torch.equal(found.streams.logits, expected.streams.logits)
    assert torch.equal(found.jacobian("joint").dense(), expected.jacobian("joint").dense())
    assert found.reconstruction.relative_error <= 1e-13
    assert detach(found.loaded, input_ids=IDS, dtype="float64").model is found.model


@pytest.mark.parametrize(
    ("name", "stored", "dtype"),
    [
        ("Gemma 2", torch.bfloat16, torch.float32),
        ("gpt-oss", torch.float32, torch.float16),
        ("DeepSeek-V3", torch.float32, torch.bfloat16),
    ],
)
def test_tensors_are_rounded_once_and_what_a_model_keeps_in_float32_is_kept(
    name: str, stored: torch.dtype, dtype: torch.dtype, tmp_path: Path
) -> None:
    made = MODELS[name](stored)
    made.save_pretrained(tmp_path)
    model, expected = read(tmp_path, type(made), stored), tensors(read(tmp_path, type(made), dtype))
    copied = load_converted((model, None), dtype).model
    convert(model, dtype)
    for found in (tensors(copied), tensors(model)):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key].dtype is value.dtype and torch.equal(found[key], value), key


def test_a_copy_attends_in_a_way_that_takes_every_dtype() -> None:
    model = tiny_models.llama(torch.float32)
    expected = detach((model, None), input_ids=IDS, dtype="float64").streams.logits
    model.set_attn_implementation("flex_attention")
    assert torch.equal(detach((model, None), input_ids=IDS, dtype="float64").streams.logits, expected)
    assert model.config._attn_implementation == "flex_attention"


def test_a_copy_keeps_an_attention_of_the_callers_own_and_is_refused() -> None:
    def thrice(module: Any, query: Tensor, *rest: Any, **options: Any) -> Any:
        return sdpa_attention_forward(module, 3 * query, *rest, **options)

    AttentionInterface.register("thrice", thrice)
    AttentionMaskInterface.register("thrice", sdpa_mask)
    model = tiny_models.llama(torch.float32)
    model.set_attn_implementation("thrice")
    with pytest.raises(UnsupportedModelError, match="its pass is not the model's own"):
        detach((model, None), input_ids=IDS, dtype="float64")


def test_what_is_as_asked_for_is_not_copied() -> None:
    loaded = load_model(tiny_models.llama(torch.float32))
    for options in ({}, {"dtype": torch.float32}, {"device": "cpu"}, {"dtype": "auto", "device": torch.device("cpu")}):
        assert load_converted(loaded, **options) is loaded
    half = load_converted(loaded, "bfloat16")
    assert half.model.lm_head.weight.dtype is torch.bfloat16 and half.model is not loaded.model


def test_a_copy_on_another_device_gives_the_same_numbers() -> None:
    model = tiny_models.llama(tie_word_embeddings=True)
    expected = detach(load_model(model), input_ids=IDS).jacobian("joint").dense()
    with Devices() as devices:
        network = detach(load_model(model), input_ids=IDS, device=SECOND)
        assert network.device == SECOND
        assert network.model.lm_head.weight is network.model.model.embed_tokens.weight
        assert {devices.place_of(value) for value in tensors(network.model).values()} == {SECOND}
        assert {str(value.device) for value in tensors(model).values()} == {"cpu"}
        assert torch.equal(network.jacobian("joint").dense().to(torch.device("cpu")), expected)


def test_weights_that_are_packed_or_offloaded_are_refused() -> None:
    packed = load_model(quantised(tiny_models.llama(torch.float32, hidden_size=64, intermediate_size=64), "int8"))
    offloaded = load_model(in_host_memory(tiny_models.llama(torch.float32)))
    for loaded, reason in ((packed, r"packed \(LLM\.int8"), (offloaded, "offloaded by accelerate")):
        assert load_converted(loaded, "float32", "cpu") is loaded
        with pytest.raises(UnsupportedModelError, match=f"{reason}.*neither converted nor moved") as caught:
            detach(loaded, input_ids=IDS, dtype="float64")
        assert "\n" not in str(caught.value)
        with pytest.raises(UnsupportedModelError, match=f"{reason}.*neither converted nor moved"):
            load_converted(loaded, device="meta")


def test_wrong_requests_are_refused() -> None:
    model = tiny_models.llama(torch.float32)
    with pytest.raises(InputError, match="use 'auto' or one of"):
        detach((model, None), input_ids=IDS, dtype="int8")
    with pytest.raises(InputError, match="cannot be used here"):
        detach((model, None), input_ids=IDS, device="abacus")
    model.model.norm.weight.data[0] = 1e6
    with pytest.raises(ModelError, match=r"norm\.weight' holds 1 NaN or infinite"):
        detach((model, None), input_ids=IDS, dtype="float16")


def test_a_run_in_another_dtype_is_verified_on_the_model_it_was_asked_of() -> None:
    model = (tiny_models.llama(torch.float32), None)
    run = analyze(model, input_ids=IDS, k=2, tokens=[0], dtype="float64", tol=1e-8)
    assert run.record["dtype"] == "float64" and run.vectors["U.0.0"].dtype is torch.float64
    assert verify(run, model).ok


def test_a_tied_table_is_converted_once() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    loaded = load_model(LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=20000, tie_word_embeddings=True)))
    twin, peak, _ = with_peak(lambda: load_converted(loaded, "float64"))
    table = twin.model.lm_head.weight
    assert table is twin.model.model.embed_tokens.weight
    assert peak < sum(p.nbytes for p in twin.model.parameters()) + table.nbytes / 2
