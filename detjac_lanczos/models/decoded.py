"""Weights kept packed, decoded some rows at a time into memory that all layers share; modules that multiply by them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from detjac_kernels.decoded import product, product_transposed
from detjac_lanczos.models.weights import Part, UnfusedWeight, Weight


class PackedRows(Protocol):
    """A packed matrix (f, d) of which any rows can be decoded alone. The decoded numbers are float32."""

    @property
    def shape(self) -> tuple[int, int]:
        """Output and input width, (f, d)."""

    @property
    def device(self) -> torch.device:
        """Where its bytes lie."""

    def decode(self, rows: range, dtype: torch.dtype) -> Tensor:
        """Return rows in a dtype: (len(rows), d); the next call may overwrite them."""


class DecodedWeight(UnfusedWeight):
    """Some rows of a packed matrix, in order: all of them, or ``runs``."""

    def __init__(self, packed: PackedRows, runs: Sequence[range] | None = None) -> None:
        self.packed = packed
        self.runs = (range(packed.shape[0]),) if runs is None else tuple(runs)
        self.shape, self.device = (sum(map(len, self.runs)), packed.shape[1]), packed.device

    def product(self, x: Tensor) -> Tensor:
        """Return ``x Wᵀ``: (R, d) to (R, f)."""
        return product(x, self.packed.decode, self.runs)

    def product_transposed(self, y: Tensor) -> Tensor:
        """Return ``y W``: (R, f) to (R, d)."""
        return product_transposed(y, self.packed.decode, self.runs, self.shape[1])

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return W as a plain matrix (f, d), float32 by default."""
        dtype = dtype or torch.float32
        return torch.cat([self.packed.decode(run, dtype).clone() for run in self.runs])


def runs_of(part: Part | None, rows: int) -> tuple[range, ...]:
    """Return which rows of a matrix a part is, as runs of evenly spaced ascending ones in its order."""
    if part is None:
        return (range(rows),)
    chosen = part(torch.arange(rows, device="cpu")).flatten().tolist()
    runs: list[range] = []
    start = 0
    steps = [b - a for a, b in pairwise(chosen)]
    while start < len(chosen):
        step = max(1, steps[start]) if start < len(steps) else 1
        end = start + 1
        while end < len(chosen) and steps[end - 1] == step:
            end += 1
        runs.append(range(chosen[start], chosen[end - 1] + 1, step))
        start = end
    return tuple(runs)


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
