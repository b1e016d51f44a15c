"""GLM-4 MoE: Llama's attention; shared experts beside routed ones, or a dense MLP."""

from dataclasses import replace

from detjac_lanczos.frozen.families.deepseek import DEEPSEEK_V3
from detjac_lanczos.frozen.families.llama import ATTENTION, LLAMA

GLM4_MOE = replace(
    LLAMA,
    name="GLM-4 MoE",
    classes=("Glm4MoeForCausalLM",),
    block=((ATTENTION,), (DEEPSEEK_V3.branch("mlp"),)),
)
