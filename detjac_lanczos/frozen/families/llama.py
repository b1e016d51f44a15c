"""Llama: pre-norm blocks, a gated MLP, grouped heads."""

from dataclasses import replace

from detjac_lanczos.frozen.declare import Family, Residual
from detjac_lanczos.frozen.words import Attend, GatedMLP, Project, RMSNorm

ATTENTION = Residual(
    "attention",
    (RMSNorm("input_layernorm"), Project("self_attn.v_proj"), Attend("self_attn"), Project("self_attn.o_proj")),
    output="self_attn.o_proj",
)
MLP = Residual(
    "mlp",
    (
        RMSNorm("post_attention_layernorm"),
        GatedMLP("mlp.gate_proj", "mlp.up_proj", "mlp.act_fn"),
        Project("mlp.down_proj"),
    ),
    output="mlp.down_proj",
)
FUSED_MLP = replace(MLP, words=(MLP.words[0], GatedMLP.fused("mlp.gate_up_proj", "mlp.activation_fn"), MLP.words[2]))
"""Of one module for gate | up."""

LLAMA = Family(
    name="Llama 2 / 3",
    classes=("LlamaForCausalLM",),
    block=((ATTENTION,), (MLP,)),
    tail=(RMSNorm("norm"),),
)
