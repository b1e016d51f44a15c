"""The frozen factor of an RMS norm."""

import torch
from torch import Tensor


def rms_reciprocal(x: Tensor, eps: float) -> Tensor:
    """Return ``1 / sqrt(mean(x²) + eps)`` over the last axis, in float32 at least.

    Parameters
    ----------
    x : Tensor, shape (..., d)
    eps : float

    Returns
    -------
    Tensor, shape (...)
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.rsqrt(x.square().mean(-1) + eps)
