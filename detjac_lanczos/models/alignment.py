"""Weights that begin where the processor's vector loads do."""

import torch
from torch import Tensor, nn

ALIGNMENT = 64
"""Bytes: a cache line, and a vector of AVX-512. torch's own memory begins on such a boundary."""


def align(model: nn.Module) -> None:
    """Move every float32 weight that begins off a boundary to memory of its own, one after another.

    Stored weights are mapped from a safetensors file, whose header ends anywhere, and then each vector of theirs lies
    in two cache lines: transposed products, which read weights in place, take 12 to 45 % longer up to 84 rows (Zen 5).
    Other dtypes are repacked by their products and take as long either way.
    """
    for weight in model.parameters():
        data = weight.data
        plain = type(data) is Tensor and data.dtype is torch.float32 and data.is_cpu
        if plain and data.data_ptr() % ALIGNMENT:
            weight.data = data.clone()
