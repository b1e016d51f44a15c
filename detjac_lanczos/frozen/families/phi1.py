"""Phi-1, 1.5 and 2: one centred norm feeds attention and an un-gated MLP, side by side; a head with a bias."""

from detjac_lanczos.frozen.declare import Family, Residual
from detjac_lanczos.frozen.words import ActivatedMLP, Attend, LayerNorm, Project

PHI = Family(
    name="Phi-1 / Phi-2",
    classes=("PhiForCausalLM",),
    block=(
        (
            Residual(
                "attention",
                (
                    LayerNorm("input_layernorm"),
                    Project("self_attn.v_proj"),
                    Attend("self_attn"),
                    Project("self_attn.dense"),
                ),
                output="self_attn.dense",
            ),
            Residual(
                "mlp",
                (LayerNorm("input_layernorm"), ActivatedMLP("mlp.fc1", "mlp.activation_fn"), Project("mlp.fc2")),
                output="mlp.fc2",
            ),
        ),
    ),
    tail=(LayerNorm("final_layernorm"),),
)
