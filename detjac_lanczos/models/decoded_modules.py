"""Modules that multiply by a weight that is read in place, whatever it is, and can be differentiated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from detjac_lanczos.models.weights import Weight


class Decoded(nn.Module):
    """x → x Wᵀ + b with a weight that is read in place: the decoded numbers, no rounded activations."""

    def __init__(self, weight: Weight, bias: Tensor | None) -> None:
        super().__init__()
        self._weight, self._bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) to (..., f)."""
        y = decoded_product(x, self._weight)
        return y if self._bias is None else y + self._bias.to(y.dtype)


def decoded_product(x: Tensor, weight: Weight) -> Tensor:
    """Return ``x Wᵀ``, differentiable in x: (..., d) to (..., f)."""
    y: Tensor = _Product.apply(x, weight, False)
    return y


class _Product(torch.autograd.Function):
    """``x Wᵀ`` (or ``y W``), differentiable forwards and in reverse, for any number of rows and batches of them."""

    @staticmethod
    def forward(x: Tensor, weight: Weight, transposed: bool) -> Tensor:
        product = weight.apply_transposed if transposed else weight.apply
        y = product(x.reshape(-1, x.shape[-1]).contiguous())
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.weight, ctx.transposed = inputs

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None]:
        return _Product.apply(cotangent, ctx.weight, not ctx.transposed), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _Product.apply(tangent, ctx.weight, ctx.transposed)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Weight, transposed: bool
    ) -> tuple[Any, int]:
        return _Product.apply(x.movedim(in_dims[0] or 0, 0), weight, transposed), 0
