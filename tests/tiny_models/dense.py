"""Decoders whose MLPs are all dense."""

from collections.abc import Callable
from typing import Any

import torch
import transformers

from tests.tiny_models.draw import VOCABULARY, drawn

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
SQUARE: dict[str, Any] = {name: value for name, value in SIZES.items() if name != "head_dim"}
"""Of models that take the width of a head from the hidden size."""

WINDOWED: dict[str, Any] = {
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
HALF_ROTARY: dict[str, Any] = {
    "head_dim": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
}


def llama(dtype: torch.dtype = torch.float64, *, bias: bool = False, seed: int = 0, **changes: Any) -> Any:
    """Return a Llama with grouped heads, head width ≠ hidden size / heads; ``bias`` in attention and MLP alike."""
    config = transformers.LlamaConfig(**SIZES | {"attention_bias": bias, "mlp_bias": bias} | changes)
    return drawn(transformers.LlamaForCausalLM(config), dtype, seed)


def gemma(dtype: torch.dtype = torch.float64, *, bias: bool = False, seed: int = 0, **changes: Any) -> Any:
    """Return a Gemma 3: sliding windows that cut a prompt of `LENGTH` tokens, mixed with a block of full attention."""
    options = SIZES | WINDOWED | {"query_pre_attn_scalar": 7, "attention_bias": bias} | changes
    return drawn(transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**options)), dtype, seed, norm=0)


def mistral(dtype: torch.dtype) -> Any:
    """Every block behind one window."""
    config = transformers.MistralConfig(**SIZES | {"sliding_window": 4})
    return drawn(transformers.MistralForCausalLM(config), dtype)


def ministral(dtype: torch.dtype) -> Any:
    config = transformers.MinistralConfig(**SIZES | WINDOWED)
    return drawn(transformers.MinistralForCausalLM(config), dtype)


def ministral3(dtype: torch.dtype) -> Any:
    """Queries grow with the absolute position, from position 4 on."""
    rope = {
        "rope_type": "yarn",
        "rope_theta": 100.0,
        "factor": 16.0,
        "original_max_position_embeddings": 4,
        "llama_4_scaling_beta": 0.7,
    }
    config = transformers.Ministral3Config(**SIZES | {"sliding_window": 8, "rope_parameters": rope})
    return drawn(transformers.Ministral3ForCausalLM(config), dtype)


def qwen2(dtype: torch.dtype) -> Any:
    """Biases of q, k and v always."""
    config = transformers.Qwen2Config(**SIZES | WINDOWED | {"use_sliding_window": True})
    return drawn(transformers.Qwen2ForCausalLM(config), dtype)


def qwen3(dtype: torch.dtype, *, bias: bool = False) -> Any:
    config = transformers.Qwen3Config(**SIZES | WINDOWED | {"use_sliding_window": True, "attention_bias": bias})
    return drawn(transformers.Qwen3ForCausalLM(config), dtype)


def gemma1(dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    return drawn(transformers.GemmaForCausalLM(transformers.GemmaConfig(**SIZES | changes)), dtype, norm=0)


def gemma2(dtype: torch.dtype, *, bias: bool = False) -> Any:
    """Softcaps that bend the attention scores and the logits."""
    caps = {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 30.0, "attention_bias": bias}
    config = transformers.Gemma2Config(**SIZES | WINDOWED | caps | {"query_pre_attn_scalar": 7})
    return drawn(transformers.Gemma2ForCausalLM(config), dtype, norm=0)


def gemma3_wrapper(dtype: torch.dtype) -> Any:
    """The multimodal class over text; it applies no final softcap, whatever its text configuration says."""
    text = SIZES | WINDOWED | {"query_pre_attn_scalar": 7, "final_logit_softcapping": 30.0}
    vision = {
        "hidden_size": 4,
        "intermediate_size": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 4,
        "patch_size": 2,
    }
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1)
    return drawn(transformers.Gemma3ForConditionalGeneration(config), dtype, norm=0)


def phi3(dtype: torch.dtype) -> Any:
    """Fused q, k, v and gate, up; half of each head turns."""
    config = transformers.Phi3Config(**SIZES | HALF_ROTARY | {"sliding_window": 4})
    return drawn(transformers.Phi3ForCausalLM(config), dtype)


def phi(dtype: torch.dtype) -> Any:
    """Biases everywhere, in the head too; norms of queries and keys; half of each head turns."""
    heads = {"num_attention_heads": 3, "num_key_value_heads": 1, "qk_layernorm": True}
    config = transformers.PhiConfig(**SQUARE | heads | {"rope_parameters": HALF_ROTARY["rope_parameters"]})
    return drawn(transformers.PhiForCausalLM(config), dtype)


def olmo2(dtype: torch.dtype, *, bias: bool = False) -> Any:
    config = transformers.Olmo2Config(**SIZES | {"attention_bias": bias})
    return drawn(transformers.Olmo2ForCausalLM(config), dtype)


def olmo3(dtype: torch.dtype) -> Any:
    config = transformers.Olmo3Config(**SIZES | WINDOWED)
    return drawn(transformers.Olmo3ForCausalLM(config), dtype)


def smollm3(dtype: torch.dtype, *, bias: bool = False) -> Any:
    """The middle block has no rotary embedding, and a window."""
    nope = {"no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 4}
    config = transformers.SmolLM3Config(**SIZES | nope | {"attention_bias": bias, "mlp_bias": bias})
    return drawn(transformers.SmolLM3ForCausalLM(config), dtype)


def seed_oss(dtype: torch.dtype) -> Any:
    """Biases wherever there can be one."""
    config = transformers.SeedOssConfig(**SIZES | {"attention_out_bias": True, "mlp_bias": True})
    return drawn(transformers.SeedOssForCausalLM(config), dtype)


def granite(dtype: torch.dtype, *, bias: bool = False) -> Any:
    """Multipliers of embeddings, scores, branches and logits, none of them one."""
    multipliers = {
        "embedding_multiplier": 1.7,
        "attention_multiplier": 0.4,
        "residual_multiplier": 0.6,
        "logits_scaling": 2.5,
    }
    config = transformers.GraniteConfig(**SIZES | multipliers | {"attention_bias": bias, "mlp_bias": bias})
    return drawn(transformers.GraniteForCausalLM(config), dtype)


def cohere(dtype: torch.dtype) -> Any:
    """Parallel branches behind one norm, norms of queries and keys with a weight for each head."""
    config = transformers.CohereConfig(**SQUARE | {"use_qk_norm": True, "logit_scale": 0.3, "attention_bias": True})
    return drawn(transformers.CohereForCausalLM(config), dtype)


def cohere2(dtype: torch.dtype, *, bias: bool = False) -> Any:
    """Parallel branches behind one norm; rotary embedding in windowed blocks only."""
    config = transformers.Cohere2Config(**SIZES | WINDOWED | {"logit_scale": 0.3, "attention_bias": bias})
    return drawn(transformers.Cohere2ForCausalLM(config), dtype)


def glm(dtype: torch.dtype) -> Any:
    """Fused gate and up; biases of q, k and v."""
    return drawn(transformers.GlmForCausalLM(transformers.GlmConfig(**SIZES | HALF_ROTARY)), dtype)


def glm4(dtype: torch.dtype, *, bias: bool = True) -> Any:
    """Fused gate and up; biases of q, k and v."""
    config = transformers.Glm4Config(**SIZES | HALF_ROTARY | {"attention_bias": bias})
    return drawn(transformers.Glm4ForCausalLM(config), dtype)


def starcoder2(dtype: torch.dtype) -> Any:
    """Biases everywhere; every block behind one window."""
    config = transformers.Starcoder2Config(**SQUARE | {"sliding_window": 4})
    return drawn(transformers.Starcoder2ForCausalLM(config), dtype)


def gpt2(dtype: torch.dtype, **changes: Any) -> Any:
    sizes = {"n_embd": 24, "n_inner": 40, "n_layer": 3, "n_head": 4, "n_positions": 64}
    options = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None} | sizes | changes
    return drawn(transformers.GPT2LMHeadModel(transformers.GPT2Config(**options)), dtype)


def gpt_neox(dtype: torch.dtype, **changes: Any) -> Any:
    options = SIZES | HALF_ROTARY | {"num_attention_heads": 3} | changes
    return drawn(transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**options)), dtype)


def opt(dtype: torch.dtype, **changes: Any) -> Any:
    options = SIZES | {"ffn_dim": 40} | changes
    return drawn(transformers.OPTForCausalLM(transformers.OPTConfig(**options)), dtype)


DENSE: dict[str, Callable[[torch.dtype], Any]] = {
    "Llama": llama,
    "Llama biased": lambda dtype: llama(dtype, bias=True),
    "Mistral": mistral,
    "Ministral": ministral,
    "Ministral 3": ministral3,
    "Qwen2": qwen2,
    "Qwen3": qwen3,
    "Qwen3 biased": lambda dtype: qwen3(dtype, bias=True),
    "Gemma": gemma1,
    "Gemma 2": gemma2,
    "Gemma 2 biased": lambda dtype: gemma2(dtype, bias=True),
    "Gemma 3": gemma,
    "Gemma 3 biased": lambda dtype: gemma(dtype, bias=True),
    # Gemma 3 knows a softcap of attention scores and does not apply it.
    "Gemma 3 softcapped": lambda dtype: gemma(dtype, final_logit_softcapping=30.0, attn_logit_softcapping=3.0),
    "Gemma 3 multimodal": gemma3_wrapper,
    "Phi-2": phi,
    "Phi-3": phi3,
    "OLMo 2": olmo2,
    "OLMo 2 biased": lambda dtype: olmo2(dtype, bias=True),
    "OLMo 3": olmo3,
    "SmolLM3": smollm3,
    "SmolLM3 biased": lambda dtype: smollm3(dtype, bias=True),
    "Seed-OSS": seed_oss,
    "Granite": granite,
    "Granite biased": lambda dtype: granite(dtype, bias=True),
    "Cohere": cohere,
    "Cohere 2": cohere2,
    "Cohere 2 biased": lambda dtype: cohere2(dtype, bias=True),
    "GLM": glm,
    "GLM-4": glm4,
    "GLM-4 unbiased": lambda dtype: glm4(dtype, bias=False),
    "StarCoder2": starcoder2,
    "GPT-2": gpt2,
    "GPT-2 scaled by layer": lambda dtype: gpt2(
        dtype, scale_attn_by_inverse_layer_idx=True, scale_attn_weights=False, activation_function="quick_gelu"
    ),
    "GPT-NeoX": gpt_neox,
    "GPT-NeoX sequential": lambda dtype: gpt_neox(
        dtype, use_parallel_residual=False, attention_bias=False, hidden_act="gelu_fast"
    ),
    "OPT": opt,
    "OPT post-norm": lambda dtype: opt(dtype, do_layer_norm_before=False, word_embed_proj_dim=16),
    # As in Galactica, and without the final norm, as in checkpoints of before transformers 4.20.
    "OPT plain": lambda dtype: opt(
        dtype,
        enable_bias=False,
        layer_norm_elementwise_affine=False,
        activation_function="gelu",
        _remove_final_layer_norm=True,
    ),
}

UNGATED = ("GPT-2", "GPT-NeoX", "OPT", "StarCoder2", "Phi-2")
"""How the names of those begin whose MLPs have no gate, and with it no choice of what is frozen there."""
