"""gpt-oss: attention with sinks, experts stored (in, out) with biases, gate and up rows alternating, clamped."""

from dataclasses import replace

from detjac_lanczos.frozen.declare import Residual
from detjac_lanczos.frozen.families.llama import ATTENTION, LLAMA
from detjac_lanczos.frozen.words import RMSNorm, RoutedExperts
from detjac_lanczos.frozen.words.product import CLAMPED_SWISH

GPT_OSS = replace(
    LLAMA,
    name="gpt-oss",
    classes=("GptOssForCausalLM",),
    block=(
        (ATTENTION,),
        (
            Residual(
                "mlp",
                (
                    RMSNorm("post_attention_layernorm"),
                    RoutedExperts("mlp.experts", stored_transposed=True, interleaved=True, product=CLAMPED_SWISH),
                ),
                output="mlp",
            ),
        ),
    ),
)
