"""GLM, before GLM-4: Llama's block with a fused gate | up projection."""

from dataclasses import replace

from detjac_lanczos.frozen.families.llama import ATTENTION, FUSED_MLP, LLAMA

GLM = replace(LLAMA, name="GLM", classes=("GlmForCausalLM",), block=((ATTENTION,), (FUSED_MLP,)))
