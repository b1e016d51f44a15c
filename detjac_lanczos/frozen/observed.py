"""A structural copy that computes in ways that can be observed, and in what that may differ from the model's own."""

from typing import Any

import torch
from torch import nn

from detjac_lanczos.frozen import attention
from detjac_lanczos.frozen.own_attention import OWN
from detjac_lanczos.frozen.structural_copy import structural_copy, use_plain_experts
from detjac_lanczos.models.dtypes import compute_dtype
from detjac_lanczos.models.linear_modules import multiply_by_decoded_weights
from detjac_lanczos.models.packed_modules import is_packed
from detjac_lanczos.models.text_model import text_config_of


def observed_copy(model: nn.Module) -> Any:
    """Return a structural copy that `make_observable` was given."""
    twin = structural_copy(model)
    make_observable(twin)
    return twin


def make_observable(twin: Any) -> None:
    """Have a structural copy, never a caller's model, compute where it can be observed.

    Attention goes through the observed function, experts run one by one, and packed linear modules multiply by their
    decoded weights.
    """
    attention.register()
    twin.config._attn_implementation = attention.NAME
    use_plain_experts(twin)
    multiply_by_decoded_weights(twin)


def differs_in_attention_alone(model: Any) -> bool:
    """Tell whether an observed pass computes what the model's own does, but for attention, where both can be compared.

    Elsewhere it may add up experts or packed weights in its own way, or lift roundings to float32; and in half
    precision what attention rounds is no small matter for the output.
    """
    config = text_config_of(model)
    return (
        config._attn_implementation == OWN
        and config._experts_implementation == "eager"
        and compute_dtype(model) is torch.float32
        and not any(map(is_packed, model.modules()))
    )
