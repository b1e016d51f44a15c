"""The weight of a linear module with LoRA adapters, as it runs: nothing is merged, no dense sum is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.models.adapters import active_adapters
from detjac_lanczos.models.offloaded import tensor_of
from detjac_lanczos.models.weights import Part, UnfusedWeight, Weight


@dataclass(frozen=True, eq=False)
class LowRank:
    """s B A: ``a`` (r, d), ``b`` (f, r)."""

    a: Tensor
    b: Tensor
    scaling: float

    def product(self, x: Tensor) -> Tensor:
        """(R, d) to (R, f), in the precision of the adapter."""
        return self.scaling * (x.to(self.a.dtype) @ self.a.T) @ self.b.T

    def product_transposed(self, y: Tensor) -> Tensor:
        """(R, f) to (R, d), in the precision of the adapter."""
        return self.scaling * (y.to(self.b.dtype) @ self.b) @ self.a


class AdaptedWeight(UnfusedWeight):
    """diag(m) (W + Σ s B A): a base weight, the terms of its active adapters, and (DoRA) a factor m for each row."""

    def __init__(self, base: Weight, terms: tuple[LowRank, ...], row_scale: Tensor | None = None) -> None:
        self.base, self.terms, self.row_scale = base, terms, row_scale
        self.shape, self.device = base.shape, base.device

    def product(self, x: Tensor) -> Tensor:
        """Return ``x Wᵀ``: (R, d) to (R, f)."""
        y = self.base.apply(x)
        for term in self.terms:
            y = (y + term.product(x)).to(x.dtype)
        return y if self.row_scale is None else (y * self.row_scale).to(x.dtype)

    def product_transposed(self, y: Tensor) -> Tensor:
        """Return ``y W``: (R, f) to (R, d)."""
        y = y if self.row_scale is None else (y * self.row_scale).to(y.dtype)
        x = self.base.apply_transposed(y)
        for term in self.terms:
            x = (x + term.product_transposed(y)).to(y.dtype)
        return x

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return W as a plain matrix (f, d)."""
        matrix = self.base.dense(dtype)
        for term in self.terms:
            matrix = matrix + (term.scaling * term.b @ term.a).to(matrix.dtype)
        return matrix if self.row_scale is None else self.row_scale.to(matrix.dtype)[:, None] * matrix


def adapted_weight(layer: Any, base: Weight, part: Part | None) -> Weight:
    """Return the weight of a LoRA layer.

    Parameters
    ----------
    layer : peft.tuners.lora.LoraLayer around a linear module
    base : Weight
        Of what lies inside, of the same ``part`` of its rows.
    part : Part or None
    """
    adapters = active_adapters(layer)
    if not adapters:
        return base
    terms = []
    for adapter in adapters:
        b = _matrix(layer.lora_B[adapter])
        b = b if part is None else part(b)
        terms.append(LowRank(_matrix(layer.lora_A[adapter]), b.reshape(-1, b.shape[-1]), float(layer.scaling[adapter])))
    weight = AdaptedWeight(base, tuple(terms))
    magnitudes = layer.lora_magnitude_vector
    if adapters[0] not in magnitudes:
        return weight
    # DoRA: row j of W + s B A is given the length m_j (Liu et al. 2024, equation 5).
    magnitude = _matrix(magnitudes[adapters[0]])
    magnitude = magnitude if part is None else part(magnitude).flatten()
    return AdaptedWeight(base, tuple(terms), magnitude / weight.dense(magnitude.dtype).norm(dim=1))


def _matrix(module: nn.Module) -> Tensor:
    matrix = tensor_of(module, "weight")
    if matrix is None:
        raise UnsupportedModelError(f"a LoRA layer holds a {type(module).__name__} without a weight; merge its adapter")
    return matrix


def adapted_bias(layer: Any, base: Tensor | None) -> Tensor | None:
    """Return the bias of a LoRA layer: that of what lies inside, and the scaled biases of B."""
    for adapter in active_adapters(layer):
        bias = tensor_of(layer.lora_B[adapter], "bias")
        if bias is not None:
            added = layer.scaling[adapter] * bias
            base = added if base is None else base + added
    return base
