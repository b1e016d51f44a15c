"""GPT-NeoX and Pythia: two centred norms of the same stream feed attention and MLP side by side, or in turn."""

from dataclasses import replace

from detjac_lanczos.frozen.declare import Family, Residual
from detjac_lanczos.frozen.words import ActivatedMLP, Attend, LayerNorm, Project, values_by_head

ATTENTION = Residual(
    "attention",
    (
        LayerNorm("input_layernorm"),
        Project("attention.query_key_value", values_by_head),
        Attend("attention"),
        Project("attention.dense"),
    ),
    output="attention.dense",
)
MLP = Residual(
    "mlp",
    (
        LayerNorm("post_attention_layernorm"),
        ActivatedMLP("mlp.dense_h_to_4h", "mlp.act"),
        Project("mlp.dense_4h_to_h"),
    ),
    output="mlp.dense_4h_to_h",
)

GPT_NEOX = Family(
    name="GPT-NeoX / Pythia",
    classes=("GPTNeoXForCausalLM",),
    block=((ATTENTION, MLP),),
    tail=(LayerNorm("final_layer_norm"),),
    decoder="gpt_neox",
    when=("use_parallel_residual", True),
)
GPT_NEOX_SEQUENTIAL = replace(
    GPT_NEOX,
    name="GPT-NeoX (sequential)",
    block=((ATTENTION,), (MLP,)),
    when=("use_parallel_residual", False),
)
