"""Phi-3 and Phi-4: Llama's block with fused projections, q | k | v and gate | up."""

from dataclasses import replace

from detjac_lanczos.frozen.families.llama import ATTENTION, FUSED_MLP, LLAMA
from detjac_lanczos.frozen.words import Project, stacked_values

NORM, _, MIXING, OUT = ATTENTION.words

PHI3 = replace(
    LLAMA,
    name="Phi-3 / Phi-4",
    classes=("Phi3ForCausalLM",),
    block=(
        (replace(ATTENTION, words=(NORM, Project("self_attn.qkv_proj", stacked_values), MIXING, OUT)),),
        (FUSED_MLP,),
    ),
)
