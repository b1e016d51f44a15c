"""Widening: a larger Llama with a trained spectrum, made from a small one.

Every feature space (hidden, heads, MLP) is tiled r times and each matrix divided by r for the space it reads. Norms,
softmax and gates see the same values, so the function is unchanged on tiled inputs; the Jacobian of every token before
the output position becomes (1/r) 11ᵀ ⊗ J, with the singular values of the original.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from detjac_lanczos.models.alignment import align


@torch.no_grad()
def widen(model: Any, r: int) -> Any:
    """Return a Llama model of r times the width; the head is untied. ``r = 1`` returns the model itself.

    Its weights lie as those of a model that was loaded.
    """
    if r == 1:
        return model
    config = copy.deepcopy(model.config)
    config.hidden_size *= r
    config.intermediate_size *= r
    config.num_attention_heads *= r
    config.num_key_value_heads *= r
    config.tie_word_embeddings = False
    dtype = next(model.parameters()).dtype
    wide = type(model)(config).to(dtype).eval()
    small = dict(model.named_modules())
    for name, module in wide.named_modules():
        if isinstance(module, nn.Embedding):
            module.weight.copy_(small[name].weight.repeat(1, r))
        elif isinstance(module, nn.Linear):
            rows = 1 if name == "lm_head" else r
            module.weight.copy_(_tiled(small[name].weight, rows, r))
        elif getattr(module, "weight", None) is not None and module.weight.ndim == 1:
            module.weight.copy_(small[name].weight.repeat(r))
    align(wide)
    return wide


def _tiled(weight: Tensor, rows: int, columns: int) -> Tensor:
    return weight.repeat(rows, columns) / columns
