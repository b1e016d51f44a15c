"""Which rows of a fused projection a branch uses; all are views of the model's own weight.

Each function gets the rows (f, d), or a bias (f,), and the module that owns the projection's heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

PartOf = Callable[[Tensor, Any], Tensor]


def stacked_values(rows: Tensor, attention: Any) -> Tensor:
    """Rows of v in [q | k | v], whole blocks one after another; k and v are as tall as each other."""
    groups = getattr(attention, "num_key_value_groups", 1)
    size = rows.shape[0] // (groups + 2)
    return rows[-size:]


def values_by_head(rows: Tensor, attention: Any) -> Tensor:
    """Rows of v where each head has its [q, k, v]: (heads, head_dim, ...)."""
    return rows.unflatten(0, (attention.config.num_attention_heads, 3, -1))[:, 2]


def latent(rows: Tensor, attention: Any) -> Tensor:
    """Rows of the compressed keys and values, without the rotary key beside them (multi-head latent attention)."""
    return rows[: attention.kv_lora_rank]


def values_of_latent(rows: Tensor, attention: Any) -> Tensor:
    """Rows of v where each head has its [k, v], as they come out of the latent: (heads, v_head_dim, ...)."""
    return rows.unflatten(0, (attention.num_heads, -1))[:, -attention.v_head_dim :]
