"""DeepSeek-V3 and R1: values that pass a latent with a norm of its own (MLA); shared experts beside routed ones."""

from dataclasses import replace

from detjac_lanczos.frozen.declare import Residual
from detjac_lanczos.frozen.families.llama import LLAMA
from detjac_lanczos.frozen.families.mixture import DENSE
from detjac_lanczos.frozen.words import (
    Attend,
    Either,
    GatedMLP,
    Plus,
    Project,
    RMSNorm,
    RoutedExperts,
    latent,
    values_of_latent,
)

SHARED = (
    GatedMLP("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj", "mlp.shared_experts.act_fn"),
    Project("mlp.shared_experts.down_proj"),
)

DEEPSEEK_V3 = replace(
    LLAMA,
    name="DeepSeek-V3",
    classes=("DeepseekV3ForCausalLM",),
    block=(
        (
            Residual(
                "attention",
                (
                    RMSNorm("input_layernorm"),
                    Project("self_attn.kv_a_proj_with_mqa", latent),
                    RMSNorm("self_attn.kv_a_layernorm"),
                    Project("self_attn.kv_b_proj", values_of_latent),
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
                    Either("mlp.experts", present=(Plus((SHARED, (RoutedExperts("mlp.experts"),))),), absent=DENSE),
                ),
                output="mlp",
            ),
        ),
    ),
)
