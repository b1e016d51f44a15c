"""Columns in float16 at a scale that suits a sweep: J is linear, and powers of two change no digit.

Inside a sweep rows pass both ends of float16, 65,504 and 6e-5, where their product does not. SmolLM2's first token
makes massive activations: the unit vector that excites them most reaches 137,271. Its cotangents shrink: unit vectors
as they are give transposed products that are off by 2.4e-2 (root mean square), those scaled as here by 1.1e-2. Forward
ones are off by 3.7e-3, as at any scale down to half of this.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

FORWARDS, TRANSPOSED = -7, 0
"""A column's largest entry goes in between half this power of two and it."""


def fitting(blocks: Sequence[Tensor], exponent: int) -> Tensor | None:
    """Return the powers of two, float32 (b,), that fit blocks of columns (·, b) together; None but in float16."""
    if blocks[0].dtype is not torch.float16:
        return None
    largest = torch.stack([block.abs().amax(0) for block in blocks]).amax(0).float()
    return torch.ldexp(torch.ones_like(largest), exponent - torch.frexp(largest).exponent)


def scaled(X: Tensor, factors: Tensor | None) -> Tensor:
    """Return columns (d, b) times their factors."""
    return X if factors is None else (X.float() * factors).to(X.dtype)


def unscaled(X: Tensor, factors: Tensor | None) -> Tensor:
    """Return columns (d, b) divided by their factors."""
    return X if factors is None else (X.float() / factors).to(X.dtype)
