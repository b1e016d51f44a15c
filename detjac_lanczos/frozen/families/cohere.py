"""Cohere and Cohere 2: one centred norm feeds attention and MLP, which run side by side; scaled logits."""

from dataclasses import replace

from detjac_lanczos.frozen.declare import Family, Residual
from detjac_lanczos.frozen.words import Attend, GatedMLP, LayerNorm, Project, Scale

COHERE2 = Family(
    name="Cohere 2",
    classes=("Cohere2ForCausalLM",),
    block=(
        (
            Residual(
                "attention",
                (
                    LayerNorm("input_layernorm"),
                    Project("self_attn.v_proj"),
                    Attend("self_attn"),
                    Project("self_attn.o_proj"),
                ),
                output="self_attn.o_proj",
            ),
            Residual(
                "mlp",
                (
                    LayerNorm("input_layernorm"),
                    GatedMLP("mlp.gate_proj", "mlp.up_proj", "mlp.act_fn"),
                    Project("mlp.down_proj"),
                ),
                output="mlp.down_proj",
            ),
        ),
    ),
    tail=(LayerNorm("norm"),),
    logits=(Project("lm_head"), Scale("logit_scale")),
)
COHERE = replace(COHERE2, name="Cohere", classes=("CohereForCausalLM",))
