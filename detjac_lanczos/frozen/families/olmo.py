"""OLMo 2 and 3: no norm before a branch, one after it."""

from dataclasses import replace

from detjac_lanczos.frozen.declare import Residual
from detjac_lanczos.frozen.families.llama import ATTENTION, LLAMA, MLP
from detjac_lanczos.frozen.words import RMSNorm


def _norm_last(branch: Residual, path: str) -> Residual:
    return replace(branch, words=(*branch.words[1:], RMSNorm(path)), output=path)


OLMO2 = replace(
    LLAMA,
    name="OLMo 2",
    classes=("Olmo2ForCausalLM",),
    block=(
        (_norm_last(ATTENTION, "post_attention_layernorm"),),
        (_norm_last(MLP, "post_feedforward_layernorm"),),
    ),
)
OLMO3 = replace(OLMO2, name="OLMo 3", classes=("Olmo3ForCausalLM",))
