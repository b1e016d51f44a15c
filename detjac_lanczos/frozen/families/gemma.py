"""Gemma 2 and 3 (text): a norm before and after each branch, weights stored as w − 1, scaled embeddings."""

from dataclasses import replace

from detjac_lanczos.frozen.declare import Family, Residual
from detjac_lanczos.frozen.words import Attend, GatedMLP, Project, RMSNorm, Softcap

GEMMA3 = Family(
    name="Gemma 3",
    classes=("Gemma3ForCausalLM",),
    block=(
        (
            Residual(
                "attention",
                (
                    RMSNorm("input_layernorm", plus_one=True),
                    Project("self_attn.v_proj"),
                    Attend("self_attn"),
                    Project("self_attn.o_proj"),
                    RMSNorm("post_attention_layernorm", plus_one=True),
                ),
                output="post_attention_layernorm",
            ),
        ),
        (
            Residual(
                "mlp",
                (
                    RMSNorm("pre_feedforward_layernorm", plus_one=True),
                    GatedMLP("mlp.gate_proj", "mlp.up_proj", "mlp.act_fn"),
                    Project("mlp.down_proj"),
                    RMSNorm("post_feedforward_layernorm", plus_one=True),
                ),
                output="post_feedforward_layernorm",
            ),
        ),
    ),
    tail=(RMSNorm("norm", plus_one=True),),
    logits=(Project("lm_head"), Softcap("config.final_logit_softcapping")),
    input_definition="the rows of the embedding table times sqrt(hidden size)",
)
GEMMA2 = replace(GEMMA3, name="Gemma 2", classes=("Gemma2ForCausalLM",))
