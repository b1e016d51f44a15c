"""StarCoder2: Llama's attention behind centred norms, with biases, and an un-gated MLP."""

from dataclasses import replace

from detjac_lanczos.frozen.families.llama import ATTENTION, LLAMA, MLP
from detjac_lanczos.frozen.words import ActivatedMLP, LayerNorm, Project

UNGATED = (LayerNorm("post_attention_layernorm"), ActivatedMLP("mlp.c_fc", "mlp.act"), Project("mlp.c_proj"))

STARCODER2 = replace(
    LLAMA,
    name="StarCoder2",
    classes=("Starcoder2ForCausalLM",),
    block=(
        (replace(ATTENTION, words=(LayerNorm("input_layernorm"), *ATTENTION.words[1:])),),
        (replace(MLP, words=UNGATED, output="mlp.c_proj"),),
    ),
    tail=(LayerNorm("norm"),),
)
