"""GLM-4: a norm before and after each branch, a fused gate | up projection."""

from dataclasses import replace

from detjac_lanczos.frozen.declare import Residual
from detjac_lanczos.frozen.families.llama import ATTENTION, FUSED_MLP, LLAMA
from detjac_lanczos.frozen.words import RMSNorm


def _norm_after(branch: Residual, path: str) -> Residual:
    return replace(branch, words=(*branch.words, RMSNorm(path)), output=path)


GLM4 = replace(
    LLAMA,
    name="GLM-4",
    classes=("Glm4ForCausalLM",),
    block=(
        (_norm_after(ATTENTION, "post_self_attn_layernorm"),),
        (_norm_after(FUSED_MLP, "post_mlp_layernorm"),),
    ),
)
