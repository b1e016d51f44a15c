"""Decoders that no family declares, recognised by their structure, and some whose structure is not understood."""

from collections.abc import Callable
from typing import Any

import torch
import transformers

from tests.tiny_models.dense import HALF_ROTARY, SIZES, SQUARE
from tests.tiny_models.draw import VOCABULARY, drawn


def stablelm(dtype: torch.dtype, **changes: Any) -> Any:
    """Layer norms and a gated MLP; part of each head turns."""
    heads = {"num_attention_heads": 3, "num_key_value_heads": 1, "rope_parameters": HALF_ROTARY["rope_parameters"]}
    options = SQUARE | heads | changes
    return drawn(transformers.StableLmForCausalLM(transformers.StableLmConfig(**options)), dtype)


def olmo(dtype: torch.dtype, **changes: Any) -> Any:
    """Layer norms without weights, which keep no epsilon either."""
    return drawn(transformers.OlmoForCausalLM(transformers.OlmoConfig(**SQUARE | changes)), dtype)


def helium(dtype: torch.dtype) -> Any:
    return drawn(transformers.HeliumForCausalLM(transformers.HeliumConfig(**SIZES | {"head_dim": 6})), dtype)


def arcee(dtype: torch.dtype) -> Any:
    """An MLP that is not gated, with squared ReLU."""
    return drawn(transformers.ArceeForCausalLM(transformers.ArceeConfig(**SIZES)), dtype)


def nemotron(dtype: torch.dtype) -> Any:
    """Layer norms stored as weight − 1."""
    config = transformers.NemotronConfig(**SIZES | {"norm_eps": 1e-5})
    return drawn(transformers.NemotronForCausalLM(config), dtype, norm=0)


def persimmon(dtype: torch.dtype) -> Any:
    """Projections of q, k and v fused head by head, squared ReLU."""
    options = SQUARE | {"qk_layernorm": True, "rope_parameters": HALF_ROTARY["rope_parameters"]}
    config = transformers.PersimmonConfig(**options | {"num_key_value_heads": 4, "num_attention_heads": 3})
    return drawn(transformers.PersimmonForCausalLM(config), dtype)


def gpt_bigcode(dtype: torch.dtype) -> Any:
    """One head of keys and values for all queries, learned positions."""
    config = transformers.GPTBigCodeConfig(
        vocab_size=VOCABULARY, n_embd=24, n_inner=40, n_layer=3, n_head=4, n_positions=64, pad_token_id=None
    )
    return drawn(transformers.GPTBigCodeForCausalLM(config), dtype)


def biogpt(dtype: torch.dtype) -> Any:
    """The MLP's modules are the block's own."""
    return drawn(transformers.BioGptForCausalLM(transformers.BioGptConfig(**SQUARE)), dtype)


def apertus(dtype: torch.dtype) -> Any:
    """An un-gated MLP whose activation has parameters of its own."""
    rope = {"rope_type": "default", "rope_theta": 100.0}
    config = transformers.ApertusConfig(**SIZES | {"rope_parameters": rope})
    return drawn(transformers.ApertusForCausalLM(config), dtype)


def ctrl(dtype: torch.dtype) -> Any:
    """Scales its input embeddings in place."""
    config = transformers.CTRLConfig(vocab_size=VOCABULARY, n_embd=24, dff=40, n_layer=3, n_head=4, n_positions=64)
    return drawn(transformers.CTRLLMHeadModel(config), dtype)


UNDECLARED: dict[str, Callable[[torch.dtype], Any]] = {
    "StableLM": stablelm,
    "StableLM parallel": lambda dtype: stablelm(
        dtype, use_parallel_residual=True, qk_layernorm=True, use_qkv_bias=True
    ),
    "OLMo": olmo,
    "Helium": helium,
    "Arcee": arcee,
    "Nemotron": nemotron,
    "Persimmon": persimmon,
    "GPT-BigCode": gpt_bigcode,
    "BioGPT": biogpt,
    "Apertus": apertus,
}


def on_meta(make: Callable[[], Any]) -> Any:
    """Return a model without values: nothing of it can run."""
    with torch.device("meta"):
        return make()
