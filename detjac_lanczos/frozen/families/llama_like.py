"""Decoders whose blocks hold the same modules as Llama's.

They differ in what has been frozen by then: windows, rotary embeddings or their absence, norms of queries and keys,
scales of queries; and in biases, which are taken where they are.
"""

from dataclasses import replace

from detjac_lanczos.frozen.families.llama import LLAMA

MISTRAL = replace(
    LLAMA,
    name="Mistral",
    classes=("MistralForCausalLM",),
    wrappers={"Mistral3ForConditionalGeneration": "model.language_model"},
)
MINISTRAL = replace(LLAMA, name="Ministral", classes=("MinistralForCausalLM",))
MINISTRAL3 = replace(LLAMA, name="Ministral 3", classes=("Ministral3ForCausalLM",))
QWEN2 = replace(LLAMA, name="Qwen2 / Qwen2.5", classes=("Qwen2ForCausalLM",))
QWEN3 = replace(LLAMA, name="Qwen3", classes=("Qwen3ForCausalLM",))
SMOLLM3 = replace(LLAMA, name="SmolLM3", classes=("SmolLM3ForCausalLM",))
