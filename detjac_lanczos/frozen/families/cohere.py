"""Cohere and Cohere 2: one centred norm feeds attention and MLP, which run side by side; scaled logits."""

from dataclasses import replace

from detjac_lanczos.frozen.families.llama import ATTENTION, LLAMA, MLP
from detjac_lanczos.frozen.words import LayerNorm, Project, Scale

NORM = LayerNorm("input_layernorm")

COHERE2 = replace(
    LLAMA,
    name="Cohere 2",
    classes=("Cohere2ForCausalLM",),
    block=((replace(ATTENTION, words=(NORM, *ATTENTION.words[1:])), replace(MLP, words=(NORM, *MLP.words[1:]))),),
    tail=(LayerNorm("norm"),),
    logits=(Project("lm_head"), Scale("logit_scale")),
)
COHERE = replace(COHERE2, name="Cohere", classes=("CohereForCausalLM",))
