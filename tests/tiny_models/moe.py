"""Decoders with routed experts: tokens that part, experts that nobody asks for, dense blocks among the others."""

from collections.abc import Callable
from typing import Any

import torch
import transformers

from tests.tiny_models.dense import HALF_ROTARY, SIZES, WINDOWED
from tests.tiny_models.draw import drawn

SEED = 324
"""With it, routers leave some expert idle on the default prompt, and no choice is a near tie, in every model here."""

SMALL = SIZES | {"intermediate_size": 16, "num_experts_per_tok": 2}


def qwen3_moe(dtype: torch.dtype = torch.float64, *, seed: int = SEED, **changes: Any) -> Any:
    """Return a Qwen3-MoE whose middle block is dense."""
    options = SMALL | {
        "intermediate_size": 20,
        "moe_intermediate_size": 16,
        "num_experts": 6,
        "norm_topk_prob": True,
        "mlp_only_layers": [1],
    }
    return drawn(transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**options | changes)), dtype, seed)


def qwen3_moe_unnormalised(dtype: torch.dtype = torch.float64, *, seed: int = SEED) -> Any:
    """Return a Qwen3-MoE with experts in every second block only, weights that do not sum to one, biases, windows."""
    return qwen3_moe(
        dtype,
        seed=seed,
        mlp_only_layers=[],
        decoder_sparse_step=2,
        norm_topk_prob=False,
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=4,
    )


def mixtral(dtype: torch.dtype = torch.float64, *, seed: int = SEED) -> Any:
    """Return a Mixtral with a sliding window in every block."""
    config = transformers.MixtralConfig(**SMALL | {"num_local_experts": 6, "sliding_window": 4})
    return drawn(transformers.MixtralForCausalLM(config), dtype, seed)


def olmoe(dtype: torch.dtype = torch.float64, *, seed: int = SEED, **changes: Any) -> Any:
    """Return an OLMoE: weights that do not sum to one, biases, norms of all queries and of all keys at once."""
    options = SMALL | {"num_experts": 6, "head_dim": 6, "attention_bias": True}
    return drawn(transformers.OlmoeForCausalLM(transformers.OlmoeConfig(**options | changes)), dtype, seed)


def granite_moe(dtype: torch.dtype = torch.float64, *, seed: int = SEED) -> Any:
    """Return a GraniteMoe with every multiplier away from one, and biases in the attention."""
    options = SMALL | {
        "num_local_experts": 6,
        "attention_bias": True,
        "embedding_multiplier": 1.7,
        "residual_multiplier": 0.6,
        "attention_multiplier": 0.25,
        "logits_scaling": 2.5,
    }
    return drawn(transformers.GraniteMoeForCausalLM(transformers.GraniteMoeConfig(**options)), dtype, seed)


def gpt_oss(dtype: torch.dtype = torch.float64, *, seed: int = SEED, **changes: Any) -> Any:
    """Return a gpt-oss with sinks, biases, windows, yarn positions, and a limit so low that many entries reach it."""
    options = (
        SMALL
        | WINDOWED
        | {
            "num_local_experts": 6,
            "swiglu_limit": 1.1,
            "swiglu_alpha": 1.5,
            "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        }
    )
    return drawn(transformers.GptOssForCausalLM(transformers.GptOssConfig(**options | changes)), dtype, seed)


def deepseek_v3(dtype: torch.dtype = torch.float64, *, seed: int = SEED, **changes: Any) -> Any:
    """Return a DeepSeek-V3: latent attention, a dense first block, grouped experts beside two shared ones."""
    options = SMALL | {
        "num_key_value_heads": 4,
        "q_lora_rank": 9,
        "kv_lora_rank": 11,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 6,
        "v_head_dim": 7,
        "first_k_dense_replace": 1,
        "intermediate_size": 20,
        "moe_intermediate_size": 16,
        "n_shared_experts": 2,
        "n_routed_experts": 6,
        "n_group": 3,
        "topk_group": 2,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.8,
    }
    del options["head_dim"]
    config = transformers.DeepseekV3Config(**options | changes)
    return with_corrections(drawn(transformers.DeepseekV3ForCausalLM(config), dtype, seed), seed)


def with_corrections(model: Any, seed: int) -> Any:
    """Return a model with the biases of its routers' choices away from zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator, dtype=torch.float64))
    return model


def deepseek_v3_full_queries(dtype: torch.dtype = torch.float64, *, seed: int = SEED) -> Any:
    """Return a DeepSeek-V3 without low-rank queries, with biases, and weights that do not sum to the scaling factor."""
    return deepseek_v3(
        dtype, seed=seed, q_lora_rank=None, attention_bias=True, norm_topk_prob=False, rope_interleave=False
    )


def glm4_moe(dtype: torch.dtype = torch.float64, *, seed: int = SEED) -> Any:
    """Return a GLM-4 MoE: a dense first block, grouped experts beside two shared ones, norms of queries and keys."""
    sizes = {"intermediate_size": 20, "moe_intermediate_size": 16, "n_shared_experts": 2, "n_routed_experts": 6}
    routing = {"first_k_dense_replace": 1, "n_group": 3, "topk_group": 2, "routed_scaling_factor": 1.8}
    options = SMALL | HALF_ROTARY | sizes | routing | {"attention_bias": True, "use_qk_norm": True}
    model = transformers.Glm4MoeForCausalLM(transformers.Glm4MoeConfig(**options))
    return with_corrections(drawn(model, dtype, seed), seed)


def llama4(dtype: torch.dtype = torch.float64, *, seed: int = SEED) -> Any:
    """Return a Llama 4: chunks that cut a prompt, a block without positions, its temperature, a dense first block."""
    options = SMALL | {
        "intermediate_size_mlp": 20,
        "num_local_experts": 5,
        "num_experts_per_tok": 1,
        "moe_layers": [1, 2],
        "no_rope_layers": [1, 0, 1],
        "attention_chunk_size": 5,
        "attn_temperature_tuning": True,
        "floor_scale": 3,
        "attn_scale": 0.5,
        "attention_bias": True,
    }
    return drawn(transformers.Llama4ForCausalLM(transformers.Llama4TextConfig(**options)), dtype, seed)


MOE: dict[str, Callable[[torch.dtype], Any]] = {
    "Qwen3-MoE": qwen3_moe,
    "Qwen3-MoE unnormalised": qwen3_moe_unnormalised,
    "Mixtral": mixtral,
    "OLMoE": olmoe,
    "GraniteMoe": granite_moe,
    "gpt-oss": gpt_oss,
    "DeepSeek-V3": deepseek_v3,
    "DeepSeek-V3 full queries": deepseek_v3_full_queries,
    "GLM-4 MoE": glm4_moe,
    "Llama 4": llama4,
}
