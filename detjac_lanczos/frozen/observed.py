"""A structural copy that computes in ways that can be observed."""

from typing import Any

from torch import nn

from detjac_lanczos.frozen import attention
from detjac_lanczos.frozen.structural_copy import leave_inputs_alone, structural_copy, use_plain_experts
from detjac_lanczos.models.linear_modules import multiply_by_decoded_weights
from detjac_lanczos.models.text_model import configurations_of


def observed_copy(model: nn.Module) -> Any:
    """Return a structural copy that `make_observable` was given."""
    twin = structural_copy(model)
    make_observable(twin)
    return twin


def make_observable(twin: Any) -> None:
    """Have a structural copy, never a caller's model, compute where it can be observed.

    Attention goes through the observed function, experts run one by one, packed linear modules multiply by their
    decoded weights, and nothing is computed in place. Where the model reads what it wrote so, its own pass is another.
    """
    attention.register()
    attention.refuse_to_look_ahead(twin)
    for config in configurations_of(twin):
        config._attn_implementation = attention.NAME
    use_plain_experts(twin)
    leave_inputs_alone(twin)
    multiply_by_decoded_weights(twin)
