"""The attention function of the structural copy: eager arithmetic, with the weights shown to an observer.

transformers looks attention and mask functions up by name in two registries. One entry in each, added once, is all that
is ever written there; the name is only ever set on the configuration of a structural copy.
"""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

NAME = "detjac_observed"
_OBSERVER = "_detjac_observer"
_PIN = "_detjac_pin"
_lock = threading.Lock()


def register() -> None:
    """Add the two registry entries, once."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    with _lock:
        if NAME not in AttentionInterface._global_mapping:
            AttentionInterface.register(NAME, observed_attention)
            AttentionMaskInterface.register(NAME, eager_mask)


def observe_attention(module: nn.Module, observer: Callable[[Tensor], None]) -> None:
    """Have an attention module of the copy show its weights, (batch, heads, n, n), to ``observer``."""
    module.__dict__[_OBSERVER] = observer


def pin_attention(module: nn.Module, pin: Callable[[Callable[[], Tensor]], Tensor]) -> None:
    """Have an attention module of the copy take its weights from ``pin``, which is given a function that computes them.

    Weights, (batch or 1, heads, n, n), that do not come from that function make the module linear in its values.
    """
    module.__dict__[_PIN] = pin


def observed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Softmax attention in transformers' eager order of rounding.

    Parameters
    ----------
    module : torch.nn.Module
        The attention module; its observer, if any, receives the weights.
    query : Tensor, shape (batch, heads, n, head_dim)
    key, value : Tensor, shape (batch, kv_heads, n, head_dim)
    attention_mask : Tensor, shape (batch, 1, n, n), additive
    scaling, softcap : float, optional
    s_aux : Tensor, shape (heads,), optional
        Sinks: one more score for every query of a head, whose weight goes nowhere.

    Returns
    -------
    output : Tensor, shape (batch, n, heads, head_dim)
    weights : Tensor, shape (batch, heads, n, n)
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)

    def compute() -> Tensor:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return _weights(query, key, attention_mask, scale, softcap, s_aux)

    pin, observer = module.__dict__.get(_PIN), module.__dict__.get(_OBSERVER)
    weights = compute() if pin is None else pin(compute)
    if observer is not None:
        observer(weights)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def _weights(
    query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    if sinks is not None:
        extra = sinks.to(scores.dtype).reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, extra], dim=-1)
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)[..., : key.shape[2]]
