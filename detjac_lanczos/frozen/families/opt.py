"""OPT: learned positions, centred norms with biases before each branch, or (350m) of the sum after it."""

from dataclasses import replace

from detjac_lanczos.frozen.declare import Family, Residual, Stream
from detjac_lanczos.frozen.words import ActivatedMLP, Attend, Constant, Either, LayerNorm, Project

ATTENTION = Residual(
    "attention",
    (Project("self_attn.v_proj"), Attend("self_attn"), Project("self_attn.out_proj")),
    output="self_attn.out_proj",
)
MLP = Residual("mlp", (ActivatedMLP("fc1", "activation_fn"), Project("fc2")), output="fc2")

OPT = Family(
    name="OPT",
    classes=("OPTForCausalLM",),
    block=(
        (replace(ATTENTION, words=(LayerNorm("self_attn_layer_norm"), *ATTENTION.words)),),
        (replace(MLP, words=(LayerNorm("final_layer_norm"), *MLP.words)),),
    ),
    tail=(
        Either("final_layer_norm", (LayerNorm("final_layer_norm"),)),
        Either("project_out", (Project("project_out"),)),
    ),
    entry=(Either("project_in", (Project("project_in"),)), Constant("embed_positions")),
    decoder="model.decoder",
    positions_from_mask=True,
    when=("do_layer_norm_before", True),
)
OPT_POST_NORM = replace(
    OPT,
    name="OPT (post-norm)",
    block=(
        (ATTENTION,),
        Stream((LayerNorm("self_attn_layer_norm"),)),
        (MLP,),
        Stream((LayerNorm("final_layer_norm"),)),
    ),
    when=("do_layer_norm_before", False),
)
