"""OLMo 2 and 3: no norm before a branch, one after it."""

from dataclasses import replace

from detjac_lanczos.frozen.declare import Residual
from detjac_lanczos.frozen.families.llama import LLAMA
from detjac_lanczos.frozen.words import Attend, GatedMLP, Project, RMSNorm

OLMO2 = replace(
    LLAMA,
    name="OLMo 2",
    classes=("Olmo2ForCausalLM",),
    block=(
        (
            Residual(
                "attention",
                (
                    Project("self_attn.v_proj"),
                    Attend("self_attn"),
                    Project("self_attn.o_proj"),
                    RMSNorm("post_attention_layernorm"),
                ),
                output="post_attention_layernorm",
            ),
        ),
        (
            Residual(
                "mlp",
                (
                    GatedMLP("mlp.gate_proj", "mlp.up_proj", "mlp.act_fn"),
                    Project("mlp.down_proj"),
                    RMSNorm("post_feedforward_layernorm"),
                ),
                output="post_feedforward_layernorm",
            ),
        ),
    ),
)
OLMO3 = replace(OLMO2, name="OLMo 3", classes=("Olmo3ForCausalLM",))
