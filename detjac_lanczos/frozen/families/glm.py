"""GLM-4: a norm before and after each branch, a fused gate | up projection."""

from dataclasses import replace

from detjac_lanczos.frozen.declare import Residual
from detjac_lanczos.frozen.families.llama import LLAMA
from detjac_lanczos.frozen.words import Attend, GatedMLP, Project, RMSNorm

GLM4 = replace(
    LLAMA,
    name="GLM-4",
    classes=("Glm4ForCausalLM",),
    block=(
        (
            Residual(
                "attention",
                (
                    RMSNorm("input_layernorm"),
                    Project("self_attn.v_proj"),
                    Attend("self_attn"),
                    Project("self_attn.o_proj"),
                    RMSNorm("post_self_attn_layernorm"),
                ),
                output="post_self_attn_layernorm",
            ),
        ),
        (
            Residual(
                "mlp",
                (
                    RMSNorm("post_attention_layernorm"),
                    GatedMLP.fused("mlp.gate_up_proj", "mlp.activation_fn"),
                    Project("mlp.down_proj"),
                    RMSNorm("post_mlp_layernorm"),
                ),
                output="post_mlp_layernorm",
            ),
        ),
    ),
)
