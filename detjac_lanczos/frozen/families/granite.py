"""Granite and GraniteMoe: Llama's block with multipliers on the embeddings, on every branch and on the logits."""

from dataclasses import replace

from detjac_lanczos.frozen.declare import Residual
from detjac_lanczos.frozen.families.llama import ATTENTION, LLAMA, MLP
from detjac_lanczos.frozen.words import Project, RMSNorm, RoutedExperts, Scale

SCALED_ATTENTION = replace(ATTENTION, scale="residual_multiplier")

GRANITE = replace(
    LLAMA,
    name="Granite",
    classes=("GraniteForCausalLM",),
    block=((SCALED_ATTENTION,), (replace(MLP, scale="residual_multiplier"),)),
    entry=(Scale("embedding_multiplier"),),
    logits=(Project("lm_head"), Scale("config.logits_scaling", divide=True)),
)
GRANITE_MOE = replace(
    GRANITE,
    name="GraniteMoe",
    classes=("GraniteMoeForCausalLM",),
    block=(
        (SCALED_ATTENTION,),
        (
            Residual(
                "mlp",
                (RMSNorm("post_attention_layernorm"), RoutedExperts("block_sparse_moe.experts")),
                output="block_sparse_moe",
                scale="residual_multiplier",
            ),
        ),
    ),
)
