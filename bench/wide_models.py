"""One model of each kind of family, as wide as a small real one: random weights, eight blocks, heads and MLPs to scale.

What a sweep costs depends on shapes alone, so these stand for checkpoints that are not at hand. With two blocks what a
sweep does once, at its ends, would count for 5 to 9 % of its time; checkpoints of this width have sixteen or more.
"""

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
ROUTED: dict[str, Any] = {"num_local_experts": 8, "num_experts_per_tok": 2}
SHARED: dict[str, Any] = {
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 704,
    "n_shared_experts": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}
WITHOUT_HEAD_DIM = {name: size for name, size in SIZES.items() if name != "head_dim"}


def _of(model: type, config: type, sizes: dict[str, Any] = SIZES, **changes: Any) -> Callable[[], Any]:
    def make() -> Any:
        torch.manual_seed(0)
        return model(config(**sizes | changes)).eval()

    return make


WIDE: dict[str, Callable[[], Any]] = {
    "Llama": _of(tf.LlamaForCausalLM, tf.LlamaConfig),
    "Gemma 3": _of(
        tf.Gemma3ForCausalLM,
        tf.Gemma3TextConfig,
        hidden_size=1152,
        intermediate_size=6912,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
    ),
    "Phi-3": _of(tf.Phi3ForCausalLM, tf.Phi3Config, num_key_value_heads=16),
    "Phi-2": _of(tf.PhiForCausalLM, tf.PhiConfig, WITHOUT_HEAD_DIM, num_key_value_heads=16, intermediate_size=4096),
    "StarCoder2": _of(tf.Starcoder2ForCausalLM, tf.Starcoder2Config, WITHOUT_HEAD_DIM, intermediate_size=4096),
    "Cohere 2": _of(tf.Cohere2ForCausalLM, tf.Cohere2Config, intermediate_size=3584),
    "GPT-2": _of(
        tf.GPT2LMHeadModel,
        tf.GPT2Config,
        {},
        vocab_size=64,
        n_embd=1024,
        n_layer=8,
        n_head=16,
        bos_token_id=None,
        eos_token_id=None,
    ),
    "GPT-NeoX": _of(tf.GPTNeoXForCausalLM, tf.GPTNeoXConfig, intermediate_size=4096),
    "OPT": _of(tf.OPTForCausalLM, tf.OPTConfig, ffn_dim=4096),
    "Qwen3-MoE": _of(
        tf.Qwen3MoeForCausalLM,
        tf.Qwen3MoeConfig,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=1408,
    ),
    "OLMoE": _of(
        tf.OlmoeForCausalLM,
        tf.OlmoeConfig,
        WITHOUT_HEAD_DIM,
        num_key_value_heads=16,
        intermediate_size=1408,
        num_experts=8,
        num_experts_per_tok=2,
    ),
    "GLM-4 MoE": _of(tf.Glm4MoeForCausalLM, tf.Glm4MoeConfig, SIZES | SHARED),
    "DeepSeek-V3": _of(tf.DeepseekV3ForCausalLM, tf.DeepseekV3Config, WITHOUT_HEAD_DIM | SHARED | LATENT),
    "gpt-oss": _of(tf.GptOssForCausalLM, tf.GptOssConfig, intermediate_size=1024, **ROUTED),
    "Llama 4": _of(
        tf.Llama4ForCausalLM,
        tf.Llama4TextConfig,
        intermediate_size=2048,
        intermediate_size_mlp=4096,
        num_local_experts=8,
        num_experts_per_tok=1,
    ),
}
