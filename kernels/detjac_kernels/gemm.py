"""Dense GEMM in both directions from one weight, with the prologue and epilogue of a frozen branch.

With ``W`` of shape (f, d), rows are multiplied as ``x Wᵀ`` (`linear`) or ``y W`` (`linear_transposed`); the weight is
used in place, never copied or transposed. Around the product, in this order: ``scale`` (columns of the input), the
GEMM, ``gate`` (elementwise, one factor per row and column), ``out_scale`` (columns of the output), ``add``.
"""

from collections.abc import Callable
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from detjac_kernels import roads


class Around(TypedDict, total=False):
    """What a product of (R, d) to (R, f) takes along.

    ``scale`` (d,): factors of the input's columns; ``gate`` (R, f) and ``out_scale`` (f,): factors of the output;
    ``add`` (R, f): a summand, which may be overwritten: the result may reuse its memory.
    """

    scale: Tensor | None
    gate: Tensor | None
    out_scale: Tensor | None
    add: Tensor | None


def linear(
    x: Tensor,
    weight: Tensor,
    *,
    scale: Tensor | None = None,
    gate: Tensor | None = None,
    out_scale: Tensor | None = None,
    add: Tensor | None = None,
) -> Tensor:
    """Return ``(((x ∘ scale) Wᵀ) ∘ gate) ∘ out_scale + add``.

    Parameters
    ----------
    x : Tensor, shape (R, d)
    weight : Tensor, shape (f, d)
    scale, gate, out_scale, add
        As in `Around`.

    Returns
    -------
    Tensor, shape (R, f)
    """
    if gate is None and out_scale is None and add is not None:
        return surrounded(lambda rows: roads.product(rows, weight, add), x, scale)
    return surrounded(lambda rows: roads.product(rows, weight), x, scale, gate, out_scale, add)


def linear_transposed(y: Tensor, weight: Tensor, **around: Unpack[Around]) -> Tensor:
    """Return ``(((y ∘ scale) W) ∘ gate) ∘ out_scale + add``: shapes as in `linear` with d and f exchanged."""
    return linear(y, weight.t(), **around)


def surrounded(
    product: Callable[[Tensor], Tensor],
    x: Tensor,
    scale: Tensor | None = None,
    gate: Tensor | None = None,
    out_scale: Tensor | None = None,
    add: Tensor | None = None,
) -> Tensor:
    """Return ``(product(x ∘ scale) ∘ gate) ∘ out_scale + add``, shapes as in `linear`, one pass for each factor.

    What ``product`` returns is overwritten.
    """
    return epilogue(product(x if scale is None else (x * scale).to(x.dtype)), gate, out_scale, add)


def epilogue(out: Tensor, gate: Tensor | None, out_scale: Tensor | None, add: Tensor | None) -> Tensor:
    """Return ``(out ∘ gate) ∘ out_scale + add``, shapes as in `linear`; ``out`` is overwritten."""
    if gate is not None:
        out.mul_(gate)
    if out_scale is not None and add is not None and out_scale.dtype is out.dtype:
        return torch.addcmul(add, out, out_scale, out=out)
    if out_scale is not None:
        out.mul_(out_scale)
    return out if add is None else out.add_(add)
