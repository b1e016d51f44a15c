"""Decoders like Llama: its modules; windows, rotary embeddings, query and key norms and scales change P alone.

P, the attention weights, is frozen. Biases are used where present.
"""

from dataclasses import replace

from detjac_lanczos.frozen.families.llama import LLAMA

MISTRAL = replace(LLAMA, name="Mistral", classes=("MistralForCausalLM",))
MINISTRAL = replace(LLAMA, name="Ministral", classes=("MinistralForCausalLM",))
MINISTRAL3 = replace(LLAMA, name="Ministral 3", classes=("Ministral3ForCausalLM",))
QWEN2 = replace(LLAMA, name="Qwen2 / Qwen2.5", classes=("Qwen2ForCausalLM",))
QWEN3 = replace(LLAMA, name="Qwen3", classes=("Qwen3ForCausalLM",))
SEED_OSS = replace(LLAMA, name="Seed-OSS", classes=("SeedOssForCausalLM",))
SMOLLM3 = replace(LLAMA, name="SmolLM3", classes=("SmolLM3ForCausalLM",))
