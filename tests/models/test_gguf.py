"""GGUF files with a fault are refused by name and leave nothing; rotary positions are those that the file says."""

import copy
import math
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Phi3Config

from detjac_lanczos.errors import ModelError
from detjac_lanczos.models import load_model
from detjac_lanczos.models.gguf_file import _set_attention
from detjac_lanczos.models.gguf_rope import set_rope
from tests import tiny_models
from tests.models.conftest import tiny_llama
from tests.models.tiny_gguf import write_gguf
from tests.tiny_models import moe

BASE = 1 / 5000 ** (torch.arange(0, 16, 2, dtype=torch.float64) / 16)
"""Frequencies of the tiny Llama as they are, head_dim 16."""


def llama3_divisors(factor: float, low: float = 1, high: float = 4, context: float = 8192) -> np.ndarray:
    """Return what llama.cpp's conversion writes to ``rope_freqs.weight``."""
    found = []
    for frequency in BASE.tolist():
        turns = context * frequency / (2 * math.pi)
        smooth = min(max((turns - low) / (high - low), 0), 1)
        found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, "f4")


@pytest.fixture(scope="module", autouse=True)
def names_made_once() -> Iterator[None]:
    """Keep gguf's table of names: transformers has it made anew for each module of a model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map))
        yield


def refusal(path: Path, own_cache: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(path)
    assert [found for found in own_cache.iterdir() if found.is_dir()] == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            {"left_out": ["blk.1.ffn_up.weight"]},
            "lacks 1 weights .*'model.layers.1.mlp.up_proj.weight'; get a whole copy",
        ),
        ({"metadata": {"block_count": 3}}, "lacks 9 weights .*'model.layers.2"),
        ({"metadata": {"block_count": None}}, r"lacks \d+ weights .*'model.layers.10"),
        ({"metadata": {"block_count": 0}}, "num_hidden_layers is 0"),
        ({"metadata": {"block_count": 1}}, "holds 9 weights that .*'blk.1"),
        ({"further": {"blk.0.attn_q.bias": np.ones(64, "f4")}}, "holds 1 weights that .*'blk.0.attn_q.bias'"),
        (
            {"further": {"rope_factors_long.weight": np.ones(8, "f4")}},
            "holds 1 weights that .*'rope_factors_long.weight'",
        ),
        ({"metadata": {"feed_forward_length": 80}}, r"weight 'model.layers.0.mlp.\w+.weight' has shape .*\(\d+, \d+\)"),
        ({"metadata": {"split.count": 2}}, "is one part of 2; join them"),
        ({"metadata": {"layer_norm_rms_eps": None}}, r"says no epsilon of its norms that can be read here \(none\)"),
        (
            {"left_out": ["output_norm.weight"], "further": {"output_norm.weight": np.full(64, np.nan, "f4")}},
            "weight 'model.norm.weight' holds 64 NaN or infinite values of 64",
        ),
    ],
)
def test_weights_that_are_missing_left_over_or_not_finite_are_named(
    fault: dict[str, Any], words: str, own_cache: Path, tmp_path: Path
) -> None:
    message = refusal(write_gguf(tmp_path / "faulty.gguf", **fault), own_cache)
    assert re.search(rf"faulty\.gguf.*{words}", message), message


SCALINGS = [
    ({}, BASE, 1.0),
    ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, BASE, 1.0),
    ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 1.0}, BASE, 1.0),
    ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}, BASE / 4, 1.0),
    ({"llama.rope.scaling.factor": 4.0}, BASE / 4, 1.0),
    ({"llama.rope.scale_linear": 4.0}, BASE / 4, 1.0),
]


def yarn(factor: float, context: int, fast: float = 32, slow: float = 1) -> torch.Tensor:
    """Return the frequencies of ``ggml_rope_yarn``: a ramp from those as they are to the divided ones."""

    def dimension(turns: float) -> float:
        return 16 * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(5000))

    low, high = max(0, math.floor(dimension(fast))), min(15, math.ceil(dimension(slow)))
    ramp = 1 - ((torch.arange(8) - low) / max(0.001, high - low)).clamp(0, 1)
    return BASE / factor * (1 - ramp) + BASE * ramp


YARN = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}
SCALINGS += [
    (YARN, yarn(4, 40), 1 + 0.1 * math.log(4)),
    (YARN | {"llama.rope.scaling.original_context_length": 400}, yarn(4, 400), 1 + 0.1 * math.log(4)),
    (YARN | {"llama.rope.scaling.yarn_beta_fast": 8.0, "llama.rope.scaling.original_context_length": 400},
     yarn(4, 400, fast=8), 1 + 0.1 * math.log(4)),
]  # fmt: skip


@pytest.mark.parametrize(("metadata", "frequencies", "scale"), SCALINGS)
def test_rotary_scaling_is_that_of_the_file(
    metadata: dict[str, Any], frequencies: torch.Tensor, scale: float, own_cache: Path, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "scaled.gguf", metadata)
    for _ in range(2):
        rotary = load_model(path).model.model.rotary_emb
        torch.testing.assert_close(rotary.inv_freq.double(), frequencies, rtol=1e-6, atol=0)
        assert math.isclose(rotary.attention_scaling, scale, rel_tol=1e-7)


@pytest.mark.parametrize("factor", [1.0, 8.0, 32.0])
def test_divisors_of_frequencies_are_llama_3s(factor: float, own_cache: Path, tmp_path: Path) -> None:
    divisors = llama3_divisors(factor)
    path = write_gguf(tmp_path / "divided.gguf", further={"rope_freqs.weight": divisors})
    rotary = load_model(path).model.model.rotary_emb
    torch.testing.assert_close(rotary.inv_freq.double(), BASE / torch.tensor(divisors).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"type": "longrope", "factor": 4.0}, r"llama\.rope\.scaling\.type is 'longrope', which cannot be followed"),
        ({"type": "linear", "factor": 4.0, "attn_factor": 2.0}, r"llama\.rope\.scaling\.attn_factor is 2\.0"),
        ({"type": "yarn", "factor": 4.0, "yarn_log_multiplier": 0.1}, r"llama\.rope\.scaling\.yarn_log_multiplier"),
    ],
)
def test_scaling_that_cannot_be_followed_is_named(
    metadata: dict[str, Any], words: str, own_cache: Path, tmp_path: Path
) -> None:
    said = {f"llama.rope.scaling.{key}": value for key, value in metadata.items()}
    assert re.search(rf"scaled\.gguf: {words}", refusal(write_gguf(tmp_path / "scaled.gguf", said), own_cache))


@pytest.mark.parametrize(
    ("metadata", "divisors"),
    [
        ({}, np.linspace(1, 8, 8, dtype="f4")),
        ({}, llama3_divisors(8, low=2)),
        ({"llama.rope.scaling.factor": 2.0}, llama3_divisors(8)),
    ],
)
def test_divisors_that_are_not_llama_3s_are_refused(
    metadata: dict[str, Any], divisors: np.ndarray, own_cache: Path, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "divided.gguf", metadata, further={"rope_freqs.weight": divisors})
    assert "divided.gguf: rope_freqs.weight divides the rotary frequencies as no Llama 3 does" in refusal(
        path, own_cache
    )


LFM2 = {
    "model.embed_tokens": "token_embd",
    "model.embedding_norm": "token_embd_norm",
    "model.layers": "blk",
    "operator_norm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_output",
    "self_attn.q_layernorm": "attn_q_norm",
    "self_attn.k_layernorm": "attn_k_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w3": "ffn_up",
    "feed_forward.w2": "ffn_down",
    ".conv.in_proj": ".shortconv.in_proj",
    ".conv.out_proj": ".shortconv.out_proj",
    ".conv.conv": ".shortconv.conv",
}


@pytest.mark.parametrize("further", [{}, {"blk.0.attn_q.bias": np.ones(64, "f4")}])
def test_weights_left_over_are_named_where_transformers_renames_by_rules(
    further: dict[str, np.ndarray], own_cache: Path, tmp_path: Path
) -> None:
    """Of Qwen 3.5 and LFM2 it takes every tensor, and maps them by no table."""
    from transformers import Lfm2Config, Lfm2ForCausalLM

    sizes = {"vocab_size": 32, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]}
    model = Lfm2ForCausalLM(Lfm2Config(**sizes, **heads, block_auto_adjust_ff_dim=False))
    metadata = {"head_count_kv": [0, 2], "lfm2.shortconv.l_cache": 3}
    path = write_gguf(tmp_path / "lfm2.gguf", metadata, (), further, "lfm2", model, LFM2)
    if further:
        assert "holds 1 weights that" in refusal(path, own_cache)
    else:
        assert load_model(path).model.config.rope_parameters["rope_theta"] == 5000.0


def test_the_base_is_that_of_the_file_where_transformers_reads_none() -> None:
    from transformers import Starcoder2Config, Starcoder2ForCausalLM

    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    model = Starcoder2ForCausalLM(Starcoder2Config(**sizes, vocab_size=32))
    set_rope(model, {"general.architecture": "starcoder2", "starcoder2.rope.freq_base": 1e6}, None, "it")
    assert model.config.rope_parameters["rope_theta"] == 1e6


def test_a_part_of_each_head_is_not_taken_for_the_whole() -> None:
    with pytest.raises(ModelError, match=r"llama\.rope\.dimension_count is 8, .*transformers turns 16"):
        set_rope(tiny_llama(), {"general.architecture": "llama", "llama.rope.dimension_count": 8}, None, "it")


def test_gemma_3_scales_its_layers_of_full_attention_alone() -> None:
    model = tiny_models.gemma()
    before = copy.deepcopy(model.config.rope_parameters)
    scaling = {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0}
    set_rope(model, {"general.architecture": "gemma3", "gemma3.rope.freq_base": 1e6} | scaling, None, "it")
    before["full_attention"] |= {"rope_type": "linear", "factor": 8.0}
    assert model.config.rope_parameters == before


@pytest.mark.parametrize("said", [{"scaling.type": "none"}, {"scaling.type": "yarn", "scaling.factor": 1.0}, {}])
def test_a_scaling_that_transformers_has_by_default_is_not_taken_for_the_file_s(said: dict[str, Any]) -> None:
    model = copy.deepcopy(moe.gpt_oss(torch.float32))
    model.config.rope_parameters = {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0}
    metadata = {"general.architecture": "gpt-oss"} | {f"gpt-oss.rope.{key}": value for key, value in said.items()}
    set_rope(model, metadata, None, "file")
    assert model.config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}


def test_a_gemma_3_of_sliding_layers_alone_has_its_frequencies() -> None:
    model = copy.deepcopy(tiny_models.gemma())
    rotary = next(part for part in model.modules() if "full_attention_inv_freq" in part._buffers)
    del rotary._buffers["full_attention_inv_freq"]
    set_rope(model, {"general.architecture": "gemma3", "gemma3.rope.freq_base": 1e5}, None, "file")
    assert model.config.rope_parameters["full_attention"]["rope_theta"] == 1e5


@pytest.mark.parametrize(("blocks", "scale"), [(2, 16), (46, 8)])
def test_soft_caps_and_the_scale_of_queries_are_those_of_gemma_2(blocks: int, scale: int) -> None:
    """The model of 46 blocks is that of 27B, which divides by the width per head."""
    config = Gemma2Config(hidden_size=32, num_attention_heads=4, head_dim=16, num_hidden_layers=blocks)
    said = {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0}
    _set_attention(config, {"general.architecture": "gemma2"} | {f"gemma2.{key}": said[key] for key in said})
    assert (config.attn_logit_softcapping, config.final_logit_softcapping) == (20.0, 10.0)
    assert config.query_pre_attn_scalar == scale


@pytest.mark.parametrize(("said", "window"), [({}, None), ({"phi3.attention.sliding_window": 2047}, 2047)])
def test_the_window_of_phi_3_is_that_of_the_file(said: dict[str, Any], window: int | None) -> None:
    config = Phi3Config(pad_token_id=0)
    _set_attention(config, {"general.architecture": "phi3"} | said)
    assert config.sliding_window == window
