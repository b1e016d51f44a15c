"""GLM, before GLM-4: Llama's block with a fused gate | up projection."""

from dataclasses import replace

from detjac_lanczos.frozen.families.llama import ATTENTION, LLAMA, MLP
from detjac_lanczos.frozen.words import GatedMLP, Project, RMSNorm

GLM = replace(
    LLAMA,
    name="GLM",
    classes=("GlmForCausalLM",),
    block=(
        (ATTENTION,),
        (
            replace(
                MLP,
                words=(
                    RMSNorm("post_attention_layernorm"),
                    GatedMLP.fused("mlp.gate_up_proj", "mlp.activation_fn"),
                    Project("mlp.down_proj"),
                ),
            ),
        ),
    ),
)
