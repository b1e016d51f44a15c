"""The model's own attention function beside the observed one: called with the mask made for it, and compared."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from detjac_lanczos.errors import UnsupportedModelError

OWN = "sdpa"
"""The function that calls are compared with: the default of transformers."""

_COMPARISON = "_detjac_comparison"

_ALIKE = 1e-4
"""Largest relative distance of two outputs in float32 (Frobenius).

Rounding alone gives 1e-7 over all families, and 5e-7 on prompts of 700 tokens; keys that one function sees and the
other does not, or a factor of the scores, change rows by their own size.
"""


def compare(config: Any) -> list[float]:
    """Have every call of the observed attention compared; return the list that relative distances go to.

    Parameters
    ----------
    config : transformers.PreTrainedConfig
        Of a structural copy, never a caller's.
    """
    distances: list[float] = []
    config.get_text_config().__dict__[_COMPARISON] = distances
    return distances


def observed_mask(**options: Any) -> Tensor | None:
    """Return the additive mask of the observed function; where calls are compared, it carries that of `OWN`."""
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    mask: Any = eager_mask(**options)
    distances = getattr(options.get("config"), _COMPARISON, None)
    if mask is not None and distances is not None:
        setattr(mask, _COMPARISON, (AttentionMaskInterface()[OWN](**options), distances))
    return mask


def compare_call(output: Tensor, module: nn.Module, *states: Tensor, mask: Tensor | None, **options: Any) -> None:
    """Note how far an output is from that of `OWN`; nothing where the mask says nothing of a comparison.

    Parameters
    ----------
    output : Tensor, shape (batch, n, heads, head_dim)
    module : torch.nn.Module
    *states : Tensor, shape (batch, heads or kv_heads, n, head_dim)
        Query, key and value.
    mask : Tensor, shape (batch, 1, n, n), optional
        As `observed_mask` made it.
    **options
        What else the model gives its function.

    Raises
    ------
    UnsupportedModelError
        If they differ by more than rounding.
    """
    from transformers import AttentionInterface

    if not hasattr(mask, _COMPARISON):
        return
    own_mask, distances = getattr(mask, _COMPARISON)
    own: Tensor = AttentionInterface()[OWN](module, *states, own_mask, **options)[0]
    distance = float((output - own).norm() / (own.norm() or 1.0))
    if not distance <= _ALIKE:
        raise UnsupportedModelError(
            f"the attention of {type(module).__name__} is not the model's own ({OWN!r}; relative error "
            f"{distance:.1e}); this model is not understood"
        )
    distances.append(distance)
