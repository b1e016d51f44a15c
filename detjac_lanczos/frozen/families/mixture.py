"""Qwen3-MoE, Mixtral and OLMoE: Llama's attention, and experts in place of some or all MLPs."""

from dataclasses import replace

from detjac_lanczos.frozen.declare import Residual
from detjac_lanczos.frozen.families.llama import ATTENTION, LLAMA, MLP
from detjac_lanczos.frozen.words import Either, RMSNorm, RoutedExperts

DENSE = MLP.words[1:]
"""What follows the norm where there are no experts."""

QWEN3_MOE = replace(
    LLAMA,
    name="Qwen3-MoE",
    classes=("Qwen3MoeForCausalLM",),
    block=(
        (ATTENTION,),
        (
            Residual(
                "mlp",
                (
                    RMSNorm("post_attention_layernorm"),
                    Either("mlp.experts", present=(RoutedExperts("mlp.experts"),), absent=DENSE),
                ),
                output="mlp",
            ),
        ),
    ),
)
MIXTRAL = replace(QWEN3_MOE, name="Mixtral", classes=("MixtralForCausalLM",))
OLMOE = replace(QWEN3_MOE, name="OLMoE", classes=("OlmoeForCausalLM",), when=("clip_qkv", None))
