"""Gemma, the first: Llama's block, weights of norms stored as w − 1, scaled embeddings."""

from dataclasses import replace

from detjac_lanczos.frozen.families.llama import ATTENTION, LLAMA, MLP
from detjac_lanczos.frozen.words import RMSNorm

GEMMA = replace(
    LLAMA,
    name="Gemma",
    classes=("GemmaForCausalLM",),
    block=(
        (replace(ATTENTION, words=(RMSNorm("input_layernorm", plus_one=True), *ATTENTION.words[1:])),),
        (replace(MLP, words=(RMSNorm("post_attention_layernorm", plus_one=True), *MLP.words[1:])),),
    ),
    tail=(RMSNorm("norm", plus_one=True),),
    input_definition="the rows of the embedding table times sqrt(hidden size)",
)
