"""Frozen factors of norms and gates, alone or made together with the output that a forward pass goes on with.

The library's own capture hooks the model's modules instead: it calls none of the latter, which are plain torch, the
specification of the device kernels of the same signatures.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Activation = Literal["silu", "gelu_tanh"]


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


def captured_rms_norm(x: Tensor, weight: Tensor, eps: float, *, plus_one: bool = False) -> tuple[Tensor, Tensor]:
    """Return an RMS norm's output and its frozen factor.

    Parameters
    ----------
    x : Tensor, shape (n, d)
    weight : Tensor, shape (d,)
    eps : float
    plus_one : bool
        Multiply by ``1 + weight``.

    Returns
    -------
    normed : Tensor, shape (n, d)
        ``x ∘ rstd ∘ weight`` computed in float32 at least, of the dtype of ``x``.
    rstd : Tensor, shape (n,)
        ``1 / sqrt(mean(x²) + eps)`` in float32 at least.
    """
    rstd = rms_reciprocal(x, eps)
    factor = weight.to(rstd.dtype) + 1 if plus_one else weight.to(rstd.dtype)
    return (x * rstd[:, None] * factor).to(x.dtype), rstd


def captured_gate(
    gate: Tensor, up: Tensor, activation: Activation, *, rstd: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the product of a gated MLP and its frozen factor.

    Parameters
    ----------
    gate, up : Tensor, shape (n, f)
    activation : {"silu", "gelu_tanh"}
    rstd : Tensor, shape (n,), optional
        A factor per position to be folded into the frozen one (not into the product).

    Returns
    -------
    product : Tensor, shape (n, f)
        ``act(gate) ∘ up``, of the dtype of ``up``.
    factor : Tensor, shape (n, f)
        ``act(gate) [∘ rstd]``, float32 where ``rstd`` is folded in, else of the dtype of ``gate``.
    """
    wide = gate.to(torch.promote_types(gate.dtype, torch.float32))
    active = functional.silu(wide) if activation == "silu" else functional.gelu(wide, approximate="tanh")
    product = (active * up).to(up.dtype)
    return product, active.to(gate.dtype) if rstd is None else active * rstd[:, None]
