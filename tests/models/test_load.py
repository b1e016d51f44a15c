"""Every road to a model ends in the same pair, or in one line that says what to do."""

import json
import os
import pickle
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from detjac_lanczos import _requirements
from detjac_lanczos.errors import InputError, ModelError, UnsupportedModelError
from detjac_lanczos.models import LoadedModel, alignment, load_model
from detjac_lanczos.models.fingerprint import fingerprint_of
from detjac_lanczos.models.loading import options_from
from detjac_lanczos.models.outline import outline
from tests import tiny_models


def test_a_folder_gives_the_weights_that_were_saved(folder: Path, live: tuple[Any, Any]) -> None:
    model, tokenizer = live
    loaded = load_model(folder)
    assert not loaded.model.training
    assert loaded.name == str(folder)
    assert loaded.context_length == 40
    assert loaded.dtype == torch.float32 and loaded.device == torch.device("cpu")
    ids = loaded.tokenizer("w3 w5 w7", return_tensors="pt").input_ids
    assert torch.equal(ids, tokenizer("w3 w5 w7", return_tensors="pt").input_ids)
    assert torch.equal(loaded.model(ids).logits, model(ids).logits)


def test_weights_loaded_in_inference_mode_can_be_differentiated_outside_of_it(folder: Path) -> None:
    with torch.inference_mode():
        loaded = load_model(folder)
    assert not any(parameter.is_inference() for parameter in loaded.model.parameters())


def test_weights_go_to_the_cpu_whatever_the_default_device_is(folder: Path) -> None:
    with torch.device("meta"):
        loaded = load_model(folder)
    assert loaded.device == torch.device("cpu")
    assert loaded.fingerprint == load_model(folder).fingerprint


def test_roads_share_one_fingerprint_and_other_weights_have_another(folder: Path, live: tuple[Any, Any]) -> None:
    model, tokenizer = live
    by_folder, by_hand, by_pair = load_model(str(folder)), load_model(model, tokenizer), load_model(live)
    assert by_folder.fingerprint == by_hand.fingerprint == by_pair.fingerprint
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-6
    assert load_model(model, tokenizer).fingerprint != by_folder.fingerprint


def test_swapped_rows_change_the_fingerprint(live: tuple[Any, Any]) -> None:
    model, _ = live
    before = load_model(model).fingerprint
    with torch.no_grad():
        weight = model.model.embed_tokens.weight
        weight.copy_(weight.flip(0))
    assert load_model(model).fingerprint != before


def refused(model: Any, words: str, kind: type[ModelError] = ModelError) -> None:
    """Load what cannot be: one line tells why."""
    with pytest.raises(kind, match=words) as caught:
        load_model(model)
    assert "\n" not in str(caught.value)


def holder(weight: torch.Tensor, name: str = "weight") -> nn.Module:
    module = nn.Module()
    module.register_parameter(name, nn.Parameter(weight, requires_grad=False))
    return module


def test_the_same_bytes_under_another_name_shape_or_dtype_have_another_fingerprint() -> None:
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).half()
    others = (holder(weight, "bias"), holder(weight.view(8, 6)), holder(weight.view(torch.bfloat16)))
    assert len({fingerprint_of(module) for module in (holder(weight), *others)}) == 4


def test_where_a_tensor_begins_has_no_part_in_its_fingerprint() -> None:
    values = torch.randn(9, 1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    apart = torch.empty(9001, dtype=torch.bfloat16)[1:].view(9, 1000).copy_(values)
    assert apart.data_ptr() % 8
    assert fingerprint_of(holder(apart)) == fingerprint_of(holder(values))


def test_a_view_counts_beside_what_it_is_a_view_of() -> None:
    both = holder(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)))
    both.register_parameter("first_rows", nn.Parameter(both.get_parameter("weight")[:2], requires_grad=False))
    before = fingerprint_of(both)
    both.get_parameter("weight")[5] += 1
    assert fingerprint_of(both) != before


@pytest.mark.parametrize("at", [0, 1, 4095, 4096, -2, -1])
def test_one_other_bit_anywhere_is_another_fingerprint(at: int) -> None:
    """Two blocks of words, and bytes left over that are no whole word."""
    weight = torch.randn(2 * 4096 + 7, generator=torch.Generator().manual_seed(0)).half()
    changed = weight.clone()
    changed.view(torch.int16)[at] ^= 1
    assert fingerprint_of(holder(changed)) != fingerprint_of(holder(weight))


def test_a_live_model_is_returned_untouched(live: tuple[Any, Any]) -> None:
    model, tokenizer = live
    model.train()
    model.model.norm.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loaded = load_model(model, tokenizer)
    assert loaded.model is model and loaded.tokenizer is tokenizer
    assert model.training
    assert not model.model.norm.weight.requires_grad and model.lm_head.weight.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert load_model(loaded) is loaded


def test_how_a_model_was_loaded_is_kept_as_data(folder: Path) -> None:
    options = {"revision": "v2", "device_map": {"": torch.device("cpu")}, "max_memory": {0: "1GB", "cpu": "2GB"}}
    loading = load_model(folder, trust_remote_code=True, token="secret", **options).loading
    assert loading.pop("trust_remote_code") is True
    assert loading == {"revision": "v2", "device_map": {"": "cpu"}, "max_memory": {"0": "1GB", "cpu": "2GB"}}
    assert options_from(loading, moved=False, placed=False) == options | {"device_map": {"": "cpu"}}
    assert options_from(loading, moved=True, placed=True) == {}
    assert load_model(folder).loading == {}


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16", torch.float64])
def test_dtype_converts_what_is_loaded(folder: Path, dtype: Any) -> None:
    wanted = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)
    loaded = load_model(folder, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {wanted}
    assert loaded.fingerprint != load_model(folder).fingerprint


def test_auto_is_the_stored_dtype(tmp_path: Path, live: tuple[Any, Any]) -> None:
    model, tokenizer = live
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_model(tmp_path).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["int8", "float8", "double", torch.int32, torch.complex64, 32, None])
def test_wrong_dtypes_are_refused(folder: Path, dtype: Any) -> None:
    with pytest.raises(InputError, match=r"dtype .* use 'auto' or one of float64, float32, bfloat16, float16"):
        load_model(folder, dtype=dtype)


def test_wrong_devices_are_refused(folder: Path) -> None:
    for device in ("abacus", "hpu"):
        with pytest.raises(InputError, match=f"device '{device}' cannot be used"):
            load_model(folder, device=device)


def test_a_long_reason_against_a_device_ends_at_a_word(folder: Path) -> None:
    with pytest.raises(InputError, match=r"Expected one of cpu, .*(?<=,) …\); try device='cpu'"):
        load_model(folder, device="gpu")


def test_a_live_model_is_not_converted_in_place(live: tuple[Any, Any]) -> None:
    with pytest.raises(InputError, match=r"live in torch.float32.*detach.*converted copy"):
        load_model(*live, dtype="float64")
    with pytest.raises(InputError, match=r"live on cpu.*detach.*copy there"):
        load_model(*live, device="meta")
    assert load_model(*live, dtype="float32", device="cpu").model is live[0]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (3, "not int"),
        (torch.nn.Linear(2, 2), "PreTrainedModel, not Linear"),
        ("no such model", "no model at"),
        ("", "name is empty"),
        ("missing.gguf", "no model at"),
        ("/nowhere/at/all", "no model at"),
        (Path("nowhere"), "no model at"),
    ],
)
def test_what_is_no_model_is_refused(what: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(what)


@pytest.mark.parametrize("asked", [load_model, outline])
def test_where_docstrings_are_stripped_no_model_is_made(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_requirements, "sys", SimpleNamespace(flags=SimpleNamespace(optimize=2)))
    with pytest.raises(_requirements.RequirementError, match="run Python without it, -O will do"):
        asked("smollm2")


def test_files_and_folders_without_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        load_model(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="holds an adapter; load its model with peft"):
        load_model(tmp_path)
    (tmp_path / "notes.txt").write_text("words")
    with pytest.raises(InputError, match=r"no \.gguf"):
        load_model(tmp_path / "notes.txt")


def test_a_tokenizer_goes_with_a_live_model_only(folder: Path, live: tuple[Any, Any]) -> None:
    with pytest.raises(InputError, match="live model only"):
        load_model(folder, live[1])


def test_options_of_loading_go_with_a_name_only(folder: Path, live: tuple[Any, Any]) -> None:
    for model in (live, live[0], load_model(folder)):
        with pytest.raises(InputError, match=r"device_map, nonsense would have no effect on a live model[^\n]*$"):
            load_model(model, device_map="auto", nonsense=3)


def test_a_hub_id_out_of_reach_is_said_in_one_line_and_a_name_in_other_letters_is_recognised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("someone/something", "'someone/something' is not on this machine.*cannot be reached")
    for name in ("smolm2", "SmolLM2", "smollm2x"):
        refused(name, r"or an embedded name: did you mean 'smollm2'\?$")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(folder: Path, live: tuple[Any, Any], bad: float) -> None:
    model, tokenizer = live
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[2, 3] = bad
    model.save_pretrained(folder)
    for what in ((folder,), (model, tokenizer)):
        with pytest.raises(ModelError, match=r"layers\.1\.self_attn\.o_proj\.weight' holds 1 NaN or infinite"):
            load_model(*what)


def test_large_finite_weights_pass(live: tuple[Any, Any]) -> None:
    model, tokenizer = live
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(3e38)
    assert isinstance(load_model(model, tokenizer), LoadedModel)


def test_truncated_and_missing_weights_are_refused(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    refused(folder, "cannot load")

    weights.write_bytes(whole)
    tensors = load_file(weights)
    del tensors["model.layers.0.mlp.down_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    refused(folder, r"lacks 1 weights.*layers\.0\.mlp\.down_proj")


@pytest.mark.parametrize("shift", [0, 8, 40])
def test_float32_weights_begin_on_a_cache_line(
    folder: Path, live: tuple[Any, Any], shift: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file's header is padded so that its tensors begin anywhere; ties and values are as they were.

    Weights that memory does not hold twice stay in the file. No ``sysconf`` is asked: Windows has none.
    """
    monkeypatch.delattr(os, "sysconf", raising=False)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    header = whole[8 : 8 + int.from_bytes(whole[:8], "little")]
    header += b" " * ((shift - 8 - len(header)) % 64)
    weights.write_bytes(len(header).to_bytes(8, "little") + header + whole[8 + int.from_bytes(whole[:8], "little") :])
    model = load_model(folder).model
    assert all(weight.data_ptr() % 64 == 0 for weight in model.parameters())
    small = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(total=100))
    monkeypatch.setattr(alignment, "psutil", small)
    as_it_lies = load_model(folder).model
    assert all(weight.data_ptr() % 64 == shift for weight in as_it_lies.parameters())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in live[0].state_dict().items())


@pytest.mark.parametrize("make", [tiny_models.llama, tiny_models.gemma])
def test_a_folder_without_a_tokenizer_is_told_before_its_weights_are_read(make: Any, tmp_path: Path) -> None:
    """Of Gemma's family transformers would make a tokenizer that knows no word."""
    make().config.save_pretrained(tmp_path)
    refused(tmp_path, r"has no tokenizer, .*\(model, None\) where input_ids are given")


def _write_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_of_another_form_is_named(folder: Path, file: str) -> None:
    (folder / file).write_text("{}" if file == "tokenizer.json" else "[]")
    refused(folder, "has no tokenizer, or none that can be read here")


def test_a_configuration_that_contradicts_itself_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 66, "num_attention_heads": 4}')
    refused(tmp_path, r"hidden size \(66\) is not a multiple of")


@pytest.mark.parametrize("layers", [1, 3])
def test_a_configuration_of_other_depth_is_refused(folder: Path, layers: int) -> None:
    """Two blocks on disk: a third would be made of random numbers, the second dropped without a word."""
    _write_config(folder, num_hidden_layers=layers)
    words = {1: r"leaves out, the first is 'model\.layers\.1\.", 3: r"lacks 9 weights .*'model\.layers\.2\."}
    refused(folder, words[layers])


def _add_weights(folder: Path, **further: torch.Tensor) -> None:
    from safetensors.torch import load_file, save_file

    weights = folder / "model.safetensors"
    save_file(load_file(weights) | further, weights, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.layers.0.self_attn.q_proj.bias", r"holds 1 weights .* \(attention_bias is false\), the first is "),
        ("model.layers.1.mlp.up_proj.bias", r"no place for \(mlp_bias is false\), the first is "),
        ("model.layers.1.mlp.up_proj.weight_scale", "no place for, the first is "),
        ("model.layers.0.self_attn.q_norm.weight", "no place for, the first is "),
        ("model.norm.bias", "no place for, the first is "),
        ("model.layers.0.post_attention_layernorm.bias", "no place for, the first is "),
        ("lm_head.bias", "no place for, the first is "),
    ],
)
def test_weights_that_a_configuration_leaves_out_are_refused(folder: Path, name: str, words: str) -> None:
    _add_weights(folder, **{name: torch.ones(64)})
    refused(folder, words + repr(name))


def test_weights_that_would_be_dropped_on_the_way_to_4_bits_are_refused(folder: Path) -> None:
    _add_weights(folder, **{"model.layers.0.self_attn.q_proj.bias": torch.ones(64)})
    with pytest.raises(ModelError, match="attention_bias is false"):
        load_model(folder, quantization="nf4")


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.0.self_attn.bias",
        "model.layers.0.self_attn.masked_bias",
        "model.layers.0.self_attn.causal_mask",
        "model.layers.0.self_attn.rotary_emb.cos_cached",
        "model.layers.0.self_attn.k_scale",
        "model.vision_tower.layers.0.mlp.fc1.weight",
        "vision_tower.encoder.layers.0.mlp.fc1.weight",
        "multi_modal_projector.linear_1.weight",
        "model.mtp_layers.0.mlp.up_proj.weight",
        "mtp.layers.0.mlp.up_proj.weight",
        "foo.bar",
    ],
)
def test_what_lies_beside_the_decoder_may_be_left_out(folder: Path, name: str) -> None:
    before = load_model(folder).fingerprint
    _add_weights(folder, **{name: torch.ones(8)})
    assert load_model(folder).fingerprint == before


def test_positions_that_are_computed_may_be_stored(folder: Path) -> None:
    from transformers import XGLMConfig, XGLMForCausalLM

    sizes = {"d_model": 16, "num_layers": 1, "attention_heads": 2, "ffn_dim": 16, "vocab_size": 32}
    XGLMForCausalLM(XGLMConfig(**sizes)).save_pretrained(folder)
    _add_weights(folder, **{"model.embed_positions.weights": torch.ones(8, 16), "model.version": torch.ones(1)})
    load_model(folder)


def test_a_model_may_be_cut_on_purpose(folder: Path) -> None:
    assert len(load_model(folder, num_hidden_layers=1).model.model.layers) == 1


def test_a_configuration_of_other_width_is_refused(folder: Path) -> None:
    _write_config(folder, intermediate_size=80)
    refused(folder, r"mlp\.\w+\.weight' has shape \(\d+, \d+\), its configuration says")


SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 32}


@pytest.mark.parametrize(
    ("architecture", "configuration", "sizes"),
    [
        ("BertModel", "BertConfig", SIZES),
        ("BertForSequenceClassification", "BertConfig", SIZES),
        ("LlamaForSequenceClassification", "LlamaConfig", SIZES | {"pad_token_id": 0}),
        ("T5Model", "T5Config", {"d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 32}),
    ],
)
def test_what_is_no_causal_language_model_is_named(
    folder: Path, architecture: str, configuration: str, sizes: dict[str, Any]
) -> None:
    import transformers

    config = getattr(transformers, configuration)(**sizes)
    getattr(transformers, architecture)(config).save_pretrained(folder)
    refused(folder, rf"is a {architecture}, .*`detjac models` lists", UnsupportedModelError)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 0}, r"has no blocks \(num_hidden_layers is 0\)"),
        ({"dtype": "float8_e4m3fn"}, r"nothing is computed in 'float8_e4m3fn', the dtype in config\.json"),
        ({"dtype": "int8"}, r"nothing is computed in 'int8', the dtype in config\.json"),
        ({"dtype": 3}, r"nothing is computed in 3, the dtype in config\.json"),
        ({"hidden_act": "foo"}, r"config\.json's hidden_act is 'foo', which transformers does not know"),
        ({"model_type": "zzz"}, r"config\.json's model_type 'zzz' is unknown .* of a LlamaForCausalLM there"),
        ({"num_attention_heads": 0}, "ZeroDivisionError"),
    ],
)
def test_the_field_of_a_configuration_that_is_at_fault_is_named(
    folder: Path, changes: dict[str, Any], words: str
) -> None:
    _write_config(folder, **changes)
    refused(folder, words)


@pytest.mark.parametrize("content", ["[]", "null", "3"])
def test_a_configuration_of_another_form_is_not_blamed_on_the_tokenizer(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    refused(folder, r"config\.json holds no JSON object")


@pytest.mark.parametrize("content", [b"", b"abc" * 100, bytes(64), pickle.dumps([1, 2], 2)], ids=str)
def test_pickled_weights_that_cannot_be_read_are_one_line(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    refused(folder, r"cannot load .* files are whole")
    torch.save([1, 2], folder / "pytorch_model.bin")
    refused(folder, r"cannot load .* files are whole")


def test_an_architecture_that_nobody_knows_is_named(folder: Path) -> None:
    _write_config(folder, model_type="wonder", architectures=["WonderForCausalLM"])
    refused(folder, "is a WonderForCausalLM", UnsupportedModelError)


def test_a_models_own_code_is_not_run_unless_asked(folder: Path) -> None:
    own = {"AutoConfig": "conf.C", "AutoModelForCausalLM": "code.M"}
    _write_config(folder, model_type="homemade", auto_map=own)
    (folder / "conf.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")
    with pytest.raises(InputError, match="trust_remote_code=True"):
        load_model(folder)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("keep", [0, 40])
def test_a_damaged_file_of_the_tokenizer_is_named(folder: Path, name: str, keep: int) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:keep])
    refused(folder, rf"{re.escape(name)} holds no JSON \(.*get a sound copy")


def test_a_live_model_without_its_configuration_is_refused() -> None:
    model = tiny_models.llama()
    model.config = None
    with pytest.raises(InputError, match=r"^the config of this LlamaForCausalLM is a NoneType"):
        load_model(model)
