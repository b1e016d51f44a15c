"""Llama 4 (text): chunked attention, a routing score on the input of each expert, a shared expert beside them."""

from dataclasses import replace

from detjac_lanczos.frozen.declare import Residual
from detjac_lanczos.frozen.families.llama import ATTENTION, LLAMA
from detjac_lanczos.frozen.words import Either, GatedMLP, Plus, Project, RMSNorm, RoutedExperts

SHARED = (
    GatedMLP(
        "feed_forward.shared_expert.gate_proj",
        "feed_forward.shared_expert.up_proj",
        "feed_forward.shared_expert.activation_fn",
    ),
    Project("feed_forward.shared_expert.down_proj"),
)
ROUTED = (RoutedExperts("feed_forward.experts", router="feed_forward.router", stored_transposed=True),)
DENSE = (
    GatedMLP("feed_forward.gate_proj", "feed_forward.up_proj", "feed_forward.activation_fn"),
    Project("feed_forward.down_proj"),
)

LLAMA4 = replace(
    LLAMA,
    name="Llama 4 (text)",
    classes=("Llama4ForCausalLM",),
    block=(
        (ATTENTION,),
        (
            Residual(
                "mlp",
                (
                    RMSNorm("post_attention_layernorm"),
                    Either("feed_forward.experts", present=(Plus((SHARED, ROUTED)),), absent=DENSE),
                ),
                output="feed_forward",
            ),
        ),
    ),
)
