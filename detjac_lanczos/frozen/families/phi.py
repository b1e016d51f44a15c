"""Phi-3 and Phi-4: Llama's block with fused projections, q | k | v and gate | up."""

from dataclasses import replace

from detjac_lanczos.frozen.declare import Residual
from detjac_lanczos.frozen.families.llama import LLAMA
from detjac_lanczos.frozen.words import Attend, GatedMLP, Project, RMSNorm, stacked_values

PHI3 = replace(
    LLAMA,
    name="Phi-3 / Phi-4",
    classes=("Phi3ForCausalLM",),
    block=(
        (
            Residual(
                "attention",
                (
                    RMSNorm("input_layernorm"),
                    Project("self_attn.qkv_proj", stacked_values),
                    Attend("self_attn"),
                    Project("self_attn.o_proj"),
                ),
                output="self_attn.o_proj",
            ),
        ),
        (
            Residual(
                "mlp",
                (
                    RMSNorm("post_attention_layernorm"),
                    GatedMLP.fused("mlp.gate_up_proj", "mlp.activation_fn"),
                    Project("mlp.down_proj"),
                ),
                output="mlp.down_proj",
            ),
        ),
    ),
)
