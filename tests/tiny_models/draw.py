"""What every tiny model shares: its sizes, and weights away from their defaults."""

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

LENGTH = 12
VOCABULARY = 40


def drawn(model: Any, dtype: torch.dtype, seed: int = 0, *, norm: float = 1.0) -> Any:
    """Draw every parameter in ``dtype`` itself (float64 values that no float32 holds); norm weights lie about ``norm``.

    Weights of projections have entries of variance 1.69 / fan-in, the last axis of all but GPT-2's ``Conv1D``.
    """
    generator = torch.Generator().manual_seed(seed)
    model = model.to(dtype).eval()
    modules = list(model.modules())
    embeddings = {id(module.weight) for module in modules if isinstance(module, nn.Embedding)}
    turned = {id(module.weight) for module in modules if isinstance(module, Conv1D)}
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.ndim > 1:
            fan_in = 1 if id(parameter) in embeddings else parameter.shape[-2 if id(parameter) in turned else -1]
            value = noise * (1.3 / fan_in**0.5)
        elif name.endswith("bias"):
            value = 0.4 * noise
        else:
            value = norm + 0.3 * noise
        parameter.data.copy_(value)
    return model
