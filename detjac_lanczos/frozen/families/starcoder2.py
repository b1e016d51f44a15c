"""StarCoder2: Llama's attention behind centred norms, with biases, and an un-gated MLP."""

from detjac_lanczos.frozen.declare import Family, Residual
from detjac_lanczos.frozen.words import ActivatedMLP, Attend, LayerNorm, Project

STARCODER2 = Family(
    name="StarCoder2",
    classes=("Starcoder2ForCausalLM",),
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
        ),
        (
            Residual(
                "mlp",
                (LayerNorm("post_attention_layernorm"), ActivatedMLP("mlp.c_fc", "mlp.act"), Project("mlp.c_proj")),
                output="mlp.c_proj",
            ),
        ),
    ),
    tail=(LayerNorm("norm"),),
)
