"""GPT-2: learned positions, centred norms with biases, an un-gated MLP, weights stored (in, out)."""

from detjac_lanczos.frozen.declare import Family, Residual
from detjac_lanczos.frozen.words import ActivatedMLP, Attend, Constant, LayerNorm, Project, stacked_values

GPT2 = Family(
    name="GPT-2",
    classes=("GPT2LMHeadModel",),
    block=(
        (
            Residual(
                "attention",
                (
                    LayerNorm("ln_1"),
                    Project("attn.c_attn", stacked_values),
                    Attend("attn"),
                    Project("attn.c_proj"),
                ),
                output="attn.c_proj",
            ),
        ),
        (
            Residual(
                "mlp",
                (LayerNorm("ln_2"), ActivatedMLP("mlp.c_fc", "mlp.act"), Project("mlp.c_proj")),
                output="mlp.c_proj",
            ),
        ),
    ),
    tail=(LayerNorm("ln_f"),),
    entry=(Constant("wpe"),),
    decoder="transformer",
    blocks="h",
)
